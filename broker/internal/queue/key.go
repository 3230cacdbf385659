package queue

// key is what the messages of one key share. At most one of them is in flight.
//
// Those that wait are in the order of their seqs, and only the first is ready; the
// others are behind it. While the key has a holder all others are behind.
type key struct {
	name    string
	refs    int    // messages of this key, wherever they are
	holder  uint64 // the one in flight, or returned with a delay and not settled since; 0: none
	front   uint64 // the one that is ready; 0: none
	waiting int    // how many are behind
	line    list   // of those behind
}

// key returns the key of this name for one message more.
func (q *Queue) key(name string) *key {
	k := q.keys[name]
	if k == nil {
		if q.keys == nil {
			q.keys = make(map[string]*key)
		}
		k = &key{name: name, line: list{places: mask(behind), flag: inKey}}
		q.keys[name] = k
	}
	k.refs++
	return k
}

// join puts m among those that wait.
func (q *Queue) join(m ref, k *key) {
	switch {
	case k.holder == m.seq: // it was returned with a delay
		k.front = m.seq
		q.move(m, ready)
	case k.holder != 0 || k.front != 0 && k.front < m.seq:
		q.move(m, behind)
	default:
		if k.front != 0 {
			first, _ := q.table.find(k.front)
			q.move(first, behind)
		}
		k.front = m.seq
		q.move(m, ready)
	}
}

// release lets seq, which is not ready or in flight any more, hold its key up no
// longer: the next one is ready.
func (q *Queue) release(k *key, seq uint64) {
	if k.holder == seq {
		k.holder = 0
	}
	if k.front == seq {
		k.front = 0
	}
	if k.holder != 0 || k.front != 0 {
		return
	}
	if next, ok := k.line.front(&q.table); ok {
		k.front = next.seq
		q.move(next, ready)
	}
}

// quit says that seq, which was of this key, is gone.
func (q *Queue) quit(k *key, seq uint64) {
	k.refs--
	if k.refs == 0 {
		delete(q.keys, k.name)
		return
	}
	q.release(k, seq)
}
