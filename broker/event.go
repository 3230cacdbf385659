package broker

import (
	"encoding/json"
	"os"

	"github.com/postbus/postbus/wire"
)

// What happens to a queue, as the last level of @sys/queue/NAME/EVENT.
const (
	eventCreated = "created"
	eventDeleted = "deleted"
	eventPaused  = "paused"
	eventResumed = "resumed"
	eventDrained = "drained" // nothing is left but dead letters
	eventPurged  = "purged"
	eventFull    = "full"   // it refuses pushes, lets them wait or drops old ones; told again only after it had room
	eventDead    = "dead"   // a message became a dead letter
	eventLost    = "lost"   // messages are gone behind the broker's back
	eventFailed  = "failed" // its store can do nothing more, and is opened again
	eventHealed  = "healed" // it was opened again
)

// event is the body of a message to @sys/queue/NAME/EVENT, in JSON.
type event struct {
	Queue   string `json:"queue"`
	Event   string `json:"event"`
	Message uint64 `json:"message,omitempty"` // its number in the queue
	Count   int    `json:"count,omitempty"`   // of messages concerned
	Reason  string `json:"reason,omitempty"`
}

// announce publishes what happened to a queue.
func (l *loop) announce(q *workQueue, what string, seq uint64, reason string) {
	l.tell(&event{Queue: q.name, Event: what, Message: seq, Reason: reason})
}

// tell publishes e once the frame now being handled is done with, if anybody listens.
func (l *loop) tell(e *event) {
	if r, err := l.topics.find(e.topic()); err == nil && len(r.subs) > 0 {
		l.told = append(l.told, *e)
	}
}

func (e *event) topic() []byte { return []byte("@sys/queue/" + e.Queue + "/" + e.Event) }

// publishTold publishes what there is to tell.
func (l *loop) publishTold() {
	told := l.told
	l.told = nil
	for i := range told {
		topic := told[i].topic()
		r, err := l.topics.find(topic)
		body, jsonErr := json.Marshal(&told[i])
		if err != nil || jsonErr != nil || len(r.subs) == 0 {
			continue
		}
		l.endRun()
		l.seq++
		l.stats.Published++
		l.run = run{route: r, from: len(l.turn), messages: 1}
		l.turn = wire.AppendMessage(l.turn, &wire.Message{
			Seq: l.seq, Time: l.stamp, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: uint32(os.Getpid()),
			Topic: topic, Body: body,
		})
		if len(l.turn) >= l.nextMark {
			l.mark()
		}
		l.endRun()
	}
}
