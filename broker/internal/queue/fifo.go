package queue

// fifo is a first-in-first-out list in blocks, so that no operation copies all of
// it and what was taken is given back.
type fifo[T any] struct {
	blocks [][]T // all but the last are full
	head   int   // how much of the first is taken
	n      int
}

// Blocks double from the smallest to the largest: a list of one message takes little.
const (
	smallBlock = 4
	largeBlock = 256
)

func (f *fifo[T]) push(v T) {
	k := len(f.blocks) - 1
	if k < 0 || len(f.blocks[k]) == cap(f.blocks[k]) {
		size := smallBlock
		if k >= 0 {
			size = min(2*cap(f.blocks[k]), largeBlock)
		}
		f.blocks = append(f.blocks, make([]T, 0, size))
		k++
	}
	f.blocks[k] = append(f.blocks[k], v)
	f.n++
}

// first returns the one that was pushed first. The list is not empty.
func (f *fifo[T]) first() T { return f.blocks[0][f.head] }

// last returns the one that was pushed last. The list is not empty.
func (f *fifo[T]) last() T {
	b := f.blocks[len(f.blocks)-1]
	return b[len(b)-1]
}

// pop takes the first away. The list is not empty.
func (f *fifo[T]) pop() {
	var none T
	b := f.blocks[0]
	b[f.head] = none
	f.head++
	f.n--
	if f.head < len(b) {
		return
	}
	f.head = 0
	if len(f.blocks) == 1 {
		f.blocks[0] = b[:0]
		return
	}
	f.blocks[0] = nil
	f.blocks = f.blocks[1:]
}

// each calls yield for all from first to last, until it returns false.
func (f *fifo[T]) each(yield func(T) bool) {
	from := f.head
	for _, b := range f.blocks {
		for _, v := range b[from:] {
			if !yield(v) {
				return
			}
		}
		from = 0
	}
}
