package broker

import (
	"slices"
	"strings"

	"github.com/postbus/postbus/wire"
)

// level is a node of the tree of filters, split at "/".
type level struct {
	parent   *level
	name     string
	children map[string]*level
	members  []member
}

// member is a subscription at the node of one of its filters.
type member struct {
	sub    *subscription
	filter int // which of its filters
}

// seat is where a member sits, so that it can be taken away at once.
type seat struct {
	node  *level
	index int
}

// levelCost is about what a node and its place in its parent's map take, in bytes
// (measured: 300).
const levelCost = 300

// costOf is about what a filter takes in the tree at most, in bytes.
func costOf(filter string) int { return len(filter) + levelCost*(1+strings.Count(filter, "/")) }

// descend returns the node of name below n and makes what is missing.
func (n *level) descend(name string) *level {
	for more := true; more; {
		var first string
		first, name, more = strings.Cut(name, "/")
		child := n.children[first]
		if child == nil {
			child = &level{parent: n, name: first}
			if n.children == nil {
				n.children = make(map[string]*level, 1)
			}
			n.children[first] = child
		}
		n = child
	}
	return n
}

// prune takes away n and its ancestors as far as they hold nothing more.
func (n *level) prune() {
	for n.parent != nil && len(n.children) == 0 && len(n.members) == 0 {
		delete(n.parent.children, n.name)
		n = n.parent
	}
}

// route is the subscriptions that get the messages of one topic.
type route struct {
	topic   string
	own     bool // the topic is the broker's own
	subs    []*subscription
	taps    []*subscription // of queues
	version uint64          // of topics, when subs and taps were right
	cost    int             // bytes counted for it
	used    bool            // since the hand of the cache last passed
	dead    bool            // no longer in the cache
}

// Bounds of the cached routes: their number, and about how many bytes they take.
const (
	maxRoutes     = 1 << 16
	maxRouteBytes = 64 << 20
)

// routeCost is about what a route takes besides its topic and its list, in bytes.
const routeCost = 250

// maxChanges is how many changes a route can be behind and still be patched; one
// that is further behind is found anew.
const maxChanges = 64

// topics finds the subscriptions of a topic, and keeps what it found. A subscription
// that comes or goes costs no more than its filters: a route is patched with what
// has changed when it is next used. So a look-up costs one map access however many
// subscriptions there are, and nobody can make the loop patch all routes at once.
type topics struct {
	filters level
	version uint64                    // how many subscriptions have come or gone
	changes [maxChanges]*subscription // the last ones, by version
	routes  map[string]*route
	ring    []*route // all routes, for the clock hand
	hand    int
	bytes   int // what all routes cost
	mark    uint64
}

// find returns the route of topic. The error is a *wire.Error: not a topic.
func (t *topics) find(topic []byte) (*route, error) {
	r := t.routes[string(topic)] // does not allocate
	if r == nil {
		name := string(topic)
		if err := wire.CheckTopic(name); err != nil {
			return nil, err
		}
		r = t.add(name)
	}
	r.used = true
	t.refresh(r)
	return r, nil
}

// add makes the route of a topic that is not cached.
func (t *topics) add(topic string) *route {
	r := &route{topic: topic, own: topic[0] == '@'}
	t.collect(r)
	if t.routes == nil {
		t.routes = make(map[string]*route)
	}
	t.routes[topic] = r
	t.ring = append(t.ring, r)
	t.account(r)
	return r
}

// refresh brings r up to date.
func (t *topics) refresh(r *route) {
	if r.version == t.version {
		return
	}
	if t.version-r.version > maxChanges {
		t.collect(r)
	} else {
		t.patch(r)
	}
	t.account(r)
}

// patch brings r up to date with the changes since it was.
func (t *topics) patch(r *route) {
	gone := func(s *subscription) bool { return s.left }
	r.subs, r.taps = slices.DeleteFunc(r.subs, gone), slices.DeleteFunc(r.taps, gone)
	for ; r.version != t.version; r.version++ {
		s := t.changes[r.version%maxChanges]
		if s.left || s.since != r.version {
			continue // it has gone; or this is where it went, and not where it came
		}
		if slices.ContainsFunc(s.filters, func(f string) bool { return wire.Match(f, r.topic) }) {
			r.add(s)
		}
	}
}

func (r *route) add(s *subscription) {
	if s.tapped != nil {
		r.taps = append(r.taps, s)
	} else {
		r.subs = append(r.subs, s)
	}
}

// account counts what r costs, and makes room for it.
func (t *topics) account(r *route) {
	cost := routeCost + len(r.topic) + 8*cap(r.subs) + 8*cap(r.taps)
	t.bytes += cost - r.cost
	r.cost = cost
	for len(t.ring) > 1 && (len(t.ring) > maxRoutes || t.bytes > maxRouteBytes) {
		t.evict()
	}
}

// evict forgets the first route that the hand meets unused since it last passed.
func (t *topics) evict() {
	for t.ring[t.hand].used {
		t.ring[t.hand].used = false
		t.hand = (t.hand + 1) % len(t.ring)
	}
	old := t.ring[t.hand]
	old.dead = true
	t.bytes -= old.cost
	delete(t.routes, old.topic)
	last := len(t.ring) - 1
	t.ring[t.hand], t.ring[last] = t.ring[last], nil
	t.ring = t.ring[:last]
	if t.hand == last {
		t.hand = 0
	}
}

// collect finds r's subscriptions in the tree of filters.
func (t *topics) collect(r *route) {
	clear(r.subs)
	clear(r.taps)
	r.subs, r.taps = r.subs[:0], r.taps[:0]
	t.mark++
	t.descendInto(&t.filters, r.topic, true, r)
	r.version = t.version
}

// descendInto adds to r the subscriptions below n whose filter matches rest, each
// once.
func (t *topics) descendInto(n *level, rest string, first bool, r *route) {
	wild := !first || !r.own
	if hash := n.children["#"]; hash != nil && wild {
		t.join(hash.members, r)
	}
	if rest == "" {
		t.join(n.members, r)
		return
	}
	name, rest, _ := strings.Cut(rest, "/")
	if child := n.children[name]; child != nil {
		t.descendInto(child, rest, false, r)
	}
	if plus := n.children["+"]; plus != nil && wild {
		t.descendInto(plus, rest, false, r)
	}
}

func (t *topics) join(members []member, r *route) {
	for _, m := range members {
		if m.sub.mark != t.mark {
			m.sub.mark = t.mark
			r.add(m.sub)
		}
	}
}

// subscribe enters s under its filters, which are valid.
func (t *topics) subscribe(s *subscription) {
	s.seats = make([]seat, len(s.filters))
	for i, filter := range s.filters {
		n := t.filters.descend(filter)
		s.seats[i] = seat{n, len(n.members)}
		n.members = append(n.members, member{s, i})
	}
	s.since = t.version
	t.change(s)
}

// unsubscribe takes s out: it gets no message that is published from now on.
func (t *topics) unsubscribe(s *subscription) {
	if s.left {
		return
	}
	s.left = true
	for _, at := range s.seats {
		members := at.node.members
		last := members[len(members)-1]
		members[at.index] = last
		last.sub.seats[last.filter].index = at.index
		members[len(members)-1] = member{}
		at.node.members = members[:len(members)-1]
		at.node.prune()
	}
	s.seats = nil
	t.change(s)
}

func (t *topics) change(s *subscription) {
	t.changes[t.version%maxChanges] = s
	t.version++
}
