package broker_test

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/postbus/postbus/wire"
)

// line is a queue as the linearizability checker has it: what is in it, in order, and
// who has which lease. A step makes a new one.
type line struct {
	high    uint16              // number of the last message
	ids     uint64              // bit n: id n was pushed
	turns   [2][maxNumbers]byte // of each consumer, how many of its takes and settles were
	waiting []job               // all there is, in order of their numbers
}

// maxNumbers is above the number of every consumer of a history.
const maxNumbers = 24

// job is a message of a line.
type job struct {
	seq           uint16
	key, priority byte // key 0 is none
	tries         byte
	holder        byte // consumer, or one of those below
}

const (
	nobody  = 0   // it is ready, or waits for another of its key
	unseen  = 254 // a consumer that was given it and died before it read that
	nowhere = 255 // it is delayed
)

// action is an operation of a history.
type action struct {
	kind     kind
	seq      uint16
	key      byte
	priority byte
	id       byte // of a push: 0 is none
	consumer byte
	turn     byte // of take and settle: it is the consumer's nth, which come in order. 0: that is not known
	tries    byte
	delayed  bool      // of push and nack
	verb     wire.Verb // of settle
	lost     bool      // of settle: it was not leased to the consumer
	unsure   bool      // of settle: nobody was told what came of it; of leave: it died
	counts   [3]int    // of look: ready, delayed, leased
}

type kind byte

const (
	actPush   kind = iota + 1 // message seq came; seq 0: it was another's duplicate
	actTake                   // the consumer was given message seq, at this try
	actSettle                 // it said what becomes of it
	actOver                   // the lease of this try is over, by now or by then
	actDue                    // a delay is over
	actLook                   // an info with these counts
	actLeave                  // the consumer closes; of recorded histories only, see hindsight
)

func (a action) String() string {
	switch a.kind {
	case actPush:
		return fmt.Sprintf("push(%d key %d id %d)", a.seq, a.key, a.id)
	case actTake:
		return fmt.Sprintf("take by %d -> %d, try %d", a.consumer, a.seq, a.tries)
	case actSettle:
		return fmt.Sprintf("%v(%d) by %d, try %d -> %s", a.verb, a.seq, a.consumer, a.tries, map[bool]string{true: "lost", false: "settled"}[a.lost])
	case actLook:
		return fmt.Sprintf("info -> %v", a.counts)
	}
	return fmt.Sprintf("%s(%d) of %d, try %d", [...]string{actOver: "over", actDue: "due", actLeave: "leave"}[a.kind], a.seq, a.consumer, a.tries)
}

// A line as the checker compares it is a string.
func (l *line) encode() string {
	b := make([]byte, 0, 10+2*maxNumbers+6*len(l.waiting))
	b = binary.LittleEndian.AppendUint16(b, l.high)
	b = binary.LittleEndian.AppendUint64(b, l.ids)
	b = append(append(b, l.turns[0][:]...), l.turns[1][:]...)
	for _, j := range l.waiting {
		b = append(binary.LittleEndian.AppendUint16(b, j.seq), j.key, j.priority, j.tries, j.holder)
	}
	return string(b)
}

func decodeLine(s string) *line {
	b := []byte(s)
	l := &line{high: binary.LittleEndian.Uint16(b), ids: binary.LittleEndian.Uint64(b[2:])}
	b = b[10:]
	b = b[copy(l.turns[0][:], b):]
	b = b[copy(l.turns[1][:], b):]
	for ; len(b) > 0; b = b[6:] {
		l.waiting = append(l.waiting, job{binary.LittleEndian.Uint16(b), b[2], b[3], b[4], b[5]})
	}
	return l
}

func (l *line) find(seq uint16) *job {
	if i := slices.IndexFunc(l.waiting, func(j job) bool { return j.seq == seq }); i >= 0 {
		return &l.waiting[i]
	}
	return nil
}

// front is the message that is next: of the highest priority the lowest number, but for
// those behind another of their key.
func (l *line) front() *job {
	var first *job
	var held [256]bool
	for i := range l.waiting { // a delayed one that was never delivered holds no key; the tests give it none
		if j := &l.waiting[i]; j.holder != nobody {
			held[j.key] = true
		}
	}
	held[0] = false
	for i := range l.waiting {
		j := &l.waiting[i]
		if j.holder == nobody && !held[j.key] && (first == nil || j.priority > first.priority) {
			first = j
		}
		held[j.key] = j.key != 0
	}
	return first
}

// step does an action and reports whether it could have happened here.
func (l *line) step(a *action) bool {
	switch a.kind {
	case actPush:
		return l.push(a)
	case actTake:
		j := l.front()
		if j == nil || j.seq != a.seq || j.tries+1 != a.tries || !l.turn(a) {
			return false
		}
		j.holder, j.tries = a.consumer, a.tries
	case actSettle:
		return l.turn(a) && l.settle(a)
	case actOver:
		j := l.find(a.seq)
		if j == nil {
			return a.seq <= l.high
		}
		if j.tries == a.tries && j.holder == a.consumer {
			j.holder = nobody
		}
		return j.tries >= a.tries
	case actDue:
		j := l.find(a.seq)
		if j == nil || j.holder != nowhere {
			return false
		}
		j.holder = nobody
	case actLook:
		return l.counts() == a.counts
	}
	return true
}

// turn reports whether it is the turn of the action among those of its consumer.
func (l *line) turn(a *action) bool {
	if a.turn == 0 {
		return true
	}
	n := &l.turns[a.kind-actTake][a.consumer]
	*n++
	return *n == a.turn
}

func (l *line) push(a *action) bool {
	if a.id != 0 {
		known := l.ids&(1<<a.id) != 0
		if known != (a.seq == 0) {
			return false
		}
		l.ids |= 1 << a.id
	}
	if a.seq == 0 {
		return a.id != 0
	}
	if l.high++; a.seq != l.high {
		return false
	}
	j := job{seq: a.seq, key: a.key, priority: a.priority}
	if a.delayed {
		j.holder = nowhere
	}
	l.waiting = append(l.waiting, j)
	return true
}

func (l *line) settle(a *action) bool {
	j := l.find(a.seq)
	switch held := j != nil && j.holder == a.consumer && j.tries == a.tries; {
	case held == a.lost:
		return false
	case a.lost, a.verb == wire.VerbExtend:
	case a.verb == wire.VerbAck:
		l.waiting = slices.DeleteFunc(l.waiting, func(j job) bool { return j.seq == a.seq })
	case a.delayed:
		j.holder = nowhere
	default:
		j.holder = nobody
	}
	return true
}

func (l *line) counts() (n [3]int) {
	for _, j := range l.waiting {
		switch j.holder {
		case nobody:
			n[0]++
		case nowhere:
			n[1]++
		default:
			n[2]++
		}
	}
	return n
}

// queueModel is what every history of a queue must be equal to, one action after the
// other.
var queueModel = porcupine.Model{
	Init: func() any { return (&line{}).encode() },
	Step: func(state, input, _ any) (bool, any) {
		a, l := input.(action), decodeLine(state.(string))
		ok := l.step(&a)
		return ok, l.encode()
	},
	DescribeOperation: func(input, _ any) string { return input.(action).String() },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", decodeLine(state.(string)).waiting) },
}

// inOrder is a history without two actions at a time.
func inOrder(actions ...action) (history []porcupine.Operation) {
	for i, a := range actions {
		history = append(history, porcupine.Operation{Input: a, Call: int64(2 * i), Return: int64(2*i + 1)})
	}
	return history
}

// The model has to tell right from wrong, or it proves nothing: each wrong history is a
// right one but for one thing.
func TestQueueModelRejects(t *testing.T) {
	pushed := func(seq uint16) action { return action{kind: actPush, seq: seq} }
	keyed := func(seq uint16, key byte) action { return action{kind: actPush, seq: seq, key: key} }
	took := func(consumer byte, seq uint16, tries byte) action {
		return action{kind: actTake, consumer: consumer, seq: seq, tries: tries}
	}
	did := func(verb wire.Verb, consumer byte, seq uint16) action {
		return action{kind: actSettle, verb: verb, consumer: consumer, seq: seq, tries: 1}
	}
	ack, nack := wire.VerbAck, wire.VerbNack
	late := did(nack, 1, 1)
	late.delayed = true
	losing := did(ack, 1, 1)
	losing.lost = true
	empty := action{kind: actLook}
	over := action{kind: actOver, consumer: 1, seq: 1, tries: 1}
	for name, c := range map[string]struct{ right, wrong []action }{
		"lost": {
			[]action{pushed(1), took(1, 1, 1), did(ack, 1, 1), empty},
			[]action{pushed(1), empty},
		},
		"invented": {
			[]action{pushed(1), took(1, 1, 1)},
			[]action{pushed(1), took(1, 2, 1)},
		},
		"not given back": {
			[]action{pushed(1), took(1, 1, 1), over, {kind: actLook, counts: [3]int{1, 0, 0}}},
			[]action{pushed(1), took(1, 1, 1), over, {kind: actLook, counts: [3]int{0, 0, 1}}},
		},
		"two leases": {
			[]action{pushed(1), took(1, 1, 1), over, took(2, 1, 2)},
			[]action{pushed(1), took(1, 1, 1), took(2, 1, 2)},
		},
		"out of order": {
			[]action{pushed(1), pushed(2), took(1, 1, 1), took(2, 2, 1)},
			[]action{pushed(1), pushed(2), took(1, 2, 1), took(2, 1, 1)},
		},
		"not by priority": {
			[]action{pushed(1), {kind: actPush, seq: 2, priority: 1}, took(1, 2, 1), took(1, 1, 1)},
			[]action{pushed(1), {kind: actPush, seq: 2, priority: 1}, took(1, 1, 1), took(1, 2, 1)},
		},
		"two of a key": {
			[]action{keyed(1, 1), keyed(2, 1), pushed(3), took(1, 1, 1), took(2, 3, 1), did(ack, 1, 1), took(1, 2, 1)},
			[]action{keyed(1, 1), keyed(2, 1), pushed(3), took(1, 1, 1), took(2, 2, 1), did(ack, 1, 1), took(1, 3, 1)},
		},
		"behind a delayed one of its key": {
			[]action{keyed(1, 1), keyed(2, 1), took(1, 1, 1), late, {kind: actDue, seq: 1, tries: 1}, took(1, 1, 2)},
			[]action{keyed(1, 1), keyed(2, 1), took(1, 1, 1), late, took(1, 2, 1)},
		},
		"not marked": {
			[]action{pushed(1), took(1, 1, 1), did(nack, 1, 1), took(2, 1, 2)},
			[]action{pushed(1), took(1, 1, 1), did(nack, 1, 1), took(2, 1, 1)},
		},
		"again after its ack": {
			[]action{pushed(1), took(1, 1, 1), did(nack, 1, 1), took(1, 1, 2)},
			[]action{pushed(1), took(1, 1, 1), did(ack, 1, 1), took(1, 1, 2)},
		},
		"settled without a lease": {
			[]action{pushed(1), took(1, 1, 1), did(nack, 1, 1), took(2, 1, 2), losing},
			[]action{pushed(1), took(1, 1, 1), did(nack, 1, 1), took(2, 1, 2), did(ack, 1, 1)},
		},
		"lease lost too early": {
			[]action{pushed(1), took(1, 1, 1), over, losing},
			[]action{pushed(1), took(1, 1, 1), losing},
		},
		"too early": {
			[]action{{kind: actPush, seq: 1, delayed: true}, {kind: actDue, seq: 1}, took(1, 1, 1)},
			[]action{{kind: actPush, seq: 1, delayed: true}, took(1, 1, 1)},
		},
		"kept twice": {
			[]action{{kind: actPush, seq: 1, id: 3}, {kind: actPush, id: 3}},
			[]action{{kind: actPush, seq: 1, id: 3}, {kind: actPush, seq: 2, id: 3}},
		},
		"not kept": {
			[]action{{kind: actPush, seq: 1, id: 3}, {kind: actPush, seq: 2, id: 4}},
			[]action{{kind: actPush, seq: 1, id: 3}, {kind: actPush, id: 4}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if !porcupine.CheckOperations(queueModel, inOrder(c.right...)) {
				t.Errorf("refused: %v", c.right)
			}
			if porcupine.CheckOperations(queueModel, inOrder(c.wrong...)) {
				t.Errorf("taken: %v", c.wrong)
			}
		})
	}
}

// exchanged returns the history with two first deliveries exchanged whose messages have
// neither key nor priority, and that did not overlap; nil when there are none.
func exchanged(history []porcupine.Operation) []porcupine.Operation {
	plain := map[uint16]bool{}
	var takes []int
	for _, op := range history {
		if a := op.Input.(action); a.kind == actPush && a.key == 0 && a.priority == 0 && !a.delayed {
			plain[a.seq] = true
		}
	}
	for i, op := range history {
		if a := op.Input.(action); a.kind == actTake && a.tries == 1 && plain[a.seq] {
			takes = append(takes, i)
		}
	}
	slices.SortFunc(takes, func(i, j int) int { return cmp.Compare(history[i].Return, history[j].Return) })
	if len(takes) == 0 {
		return nil
	}
	first, last := takes[0], takes[len(takes)-1]
	if history[first].Return >= history[last].Call {
		return nil
	}
	wrong := slices.Clone(history)
	a, b := wrong[first].Input.(action), wrong[last].Input.(action)
	a.seq, b.seq = b.seq, a.seq
	wrong[first].Input, wrong[last].Input = a, b
	return wrong
}
