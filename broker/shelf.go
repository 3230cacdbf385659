package broker

// shelf holds bodies of messages by seq. They come and go in about that order, so a
// place is found without a look-up mostly: seqs of 64 in a row share a board. The zero
// shelf is empty.
type shelf struct {
	boards map[uint64]*board // by seq/64
	last   *board            // the one used last,
	number uint64            // and its number
	spare  *board            // an empty one
	n      int               // bodies
	bytes  int               // of all of them
}

type board struct {
	bodies [64][]byte
	n      int
}

func (s *shelf) board(seq uint64) *board {
	n := seq / 64
	if s.last == nil || s.number != n {
		b := s.boards[n]
		if b == nil {
			return nil
		}
		s.last, s.number = b, n
	}
	return s.last
}

// get returns the body of message seq, nil when it is not here.
func (s *shelf) get(seq uint64) []byte {
	if s.n == 0 {
		return nil
	}
	if b := s.board(seq); b != nil {
		return b.bodies[seq%64]
	}
	return nil
}

// put keeps a body, which is not nil.
func (s *shelf) put(seq uint64, body []byte) {
	b := s.board(seq)
	if b == nil {
		if b = s.spare; b == nil {
			b = new(board)
		}
		s.spare = nil
		if s.boards == nil {
			s.boards = make(map[uint64]*board)
		}
		s.boards[seq/64] = b
		s.last, s.number = b, seq/64
	}
	at := &b.bodies[seq%64]
	if *at == nil {
		b.n++
		s.n++
	}
	s.bytes += len(body) - len(*at)
	*at = body
}

// take takes the body of message seq away and returns it.
func (s *shelf) take(seq uint64) []byte {
	if s.n == 0 {
		return nil
	}
	b := s.board(seq)
	if b == nil {
		return nil
	}
	body := b.bodies[seq%64]
	if body == nil {
		return nil
	}
	b.bodies[seq%64] = nil
	s.n--
	s.bytes -= len(body)
	if b.n--; b.n == 0 {
		delete(s.boards, seq/64)
		s.last, s.spare = nil, b
	}
	return body
}
