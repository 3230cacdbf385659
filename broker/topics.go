package broker

import (
	"strings"

	"github.com/postbus/postbus/wire"
)

// level is a node of a tree of names split at "/". The filters are one such tree,
// the cached topics another.
type level[T any] struct {
	parent   *level[T]
	name     string
	children map[string]*level[T]
	value    T
}

// descend returns the node of name below n and makes what is missing.
func (n *level[T]) descend(name string) *level[T] {
	for more := true; more; {
		var first string
		first, name, more = strings.Cut(name, "/")
		child := n.children[first]
		if child == nil {
			child = &level[T]{parent: n, name: first}
			if n.children == nil {
				n.children = make(map[string]*level[T], 1)
			}
			n.children[first] = child
		}
		n = child
	}
	return n
}

// prune takes away n and its ancestors as far as they hold nothing more.
func (n *level[T]) prune(empty func(T) bool) {
	for n.parent != nil && len(n.children) == 0 && empty(n.value) {
		delete(n.parent.children, n.name)
		n = n.parent
	}
}

// member is a subscription at the node of one of its filters.
type member struct {
	sub    *subscription
	filter int // which of its filters
}

// seat is where a member sits, so that it can be taken away at once.
type seat struct {
	node  *level[[]member]
	index int
}

// route is the subscriptions that get the messages of one topic.
type route struct {
	topic string
	own   bool // the topic is the broker's own
	subs  []*subscription
	stale bool // some of subs are closed
	used  bool // since the hand of the cache last passed
	dead  bool // no longer in the cache
}

// Bounds of the cached topics: their number, and about how many bytes they take.
const (
	maxRoutes     = 1 << 16
	maxRouteBytes = 64 << 20
)

// cost is about how many bytes a route takes at most: itself, its name, and a node
// for each level.
func (r *route) cost() int { return 200 + len(r.topic) + 150*(1+strings.Count(r.topic, "/")) }

// topics finds the subscriptions of a topic. What it found it keeps, and a
// subscription that comes or goes patches what is kept rather than emptying it:
// a look-up costs one map access however many subscriptions there are.
type topics struct {
	filters level[[]member]
	cached  level[*route]
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
	if r.stale {
		r.sweep()
	}
	return r, nil
}

// sweep takes closed subscriptions out.
func (r *route) sweep() {
	kept := r.subs[:0]
	for _, s := range r.subs {
		if !s.closed {
			kept = append(kept, s)
		}
	}
	clear(r.subs[len(kept):])
	r.subs, r.stale = kept, false
}

// add makes the route of a topic that is not cached.
func (t *topics) add(topic string) *route {
	r := &route{topic: topic, own: topic[0] == '@'}
	t.mark++
	t.collect(&t.filters, topic, true, r)
	if t.routes == nil {
		t.routes = make(map[string]*route)
	}
	t.bytes += r.cost()
	for len(t.ring) >= maxRoutes || t.bytes > maxRouteBytes {
		t.evict()
	}
	t.ring = append(t.ring, r)
	t.routes[topic] = r
	t.cached.descend(topic).value = r
	return r
}

// evict forgets the first route that the hand meets unused since it last passed.
func (t *topics) evict() {
	for t.ring[t.hand].used {
		t.ring[t.hand].used = false
		t.hand = (t.hand + 1) % len(t.ring)
	}
	old := t.ring[t.hand]
	old.dead = true
	t.bytes -= old.cost()
	delete(t.routes, old.topic)
	n := t.cached.descend(old.topic)
	n.value = nil
	n.prune(func(r *route) bool { return r == nil })
	last := len(t.ring) - 1
	t.ring[t.hand], t.ring[last] = t.ring[last], nil
	t.ring = t.ring[:last]
	if t.hand == last {
		t.hand = 0
	}
}

// collect adds to r the subscriptions below n whose filter matches rest, each once.
func (t *topics) collect(n *level[[]member], rest string, first bool, r *route) {
	wild := !first || !r.own
	if hash := n.children["#"]; hash != nil && wild {
		t.join(hash.value, r)
	}
	if rest == "" {
		t.join(n.value, r)
		return
	}
	name, rest, _ := strings.Cut(rest, "/")
	if child := n.children[name]; child != nil {
		t.collect(child, rest, false, r)
	}
	if plus := n.children["+"]; plus != nil && wild {
		t.collect(plus, rest, false, r)
	}
}

func (t *topics) join(members []member, r *route) {
	for _, m := range members {
		if m.sub.mark != t.mark {
			m.sub.mark = t.mark
			r.subs = append(r.subs, m.sub)
		}
	}
}

// subscribe enters s under its filters, which are valid.
func (t *topics) subscribe(s *subscription) {
	s.seats = make([]seat, len(s.filters))
	for i, filter := range s.filters {
		n := t.filters.descend(filter)
		s.seats[i] = seat{n, len(n.value)}
		n.value = append(n.value, member{s, i})
	}
	t.mark++
	for i := range s.filters {
		t.matching(&t.cached, s.filters[i], true, func(r *route) {
			// A route is met once for each filter that matches; s is put in once.
			if k := len(r.subs); k == 0 || r.subs[k-1] != s {
				r.subs = append(r.subs, s)
			}
		})
	}
}

// unsubscribe takes s out. Routes are swept when they are next used.
func (t *topics) unsubscribe(s *subscription) {
	for i, at := range s.seats {
		members := at.node.value
		last := members[len(members)-1]
		members[at.index] = last
		last.sub.seats[last.filter].index = at.index
		members[len(members)-1] = member{}
		at.node.value = members[:len(members)-1]
		at.node.prune(func(m []member) bool { return len(m) == 0 })
		t.matching(&t.cached, s.filters[i], true, func(r *route) { r.stale = true })
	}
	s.seats = nil
}

// matching calls visit for every cached route below n whose topic matches rest.
func (t *topics) matching(n *level[*route], rest string, first bool, visit func(*route)) {
	if rest == "#" {
		t.all(n, first, visit)
		return
	}
	name, rest, more := strings.Cut(rest, "/")
	if name != "+" {
		if child := n.children[name]; child != nil {
			t.matched(child, rest, more, visit)
		}
		return
	}
	for name, child := range n.children {
		if !first || name[0] != '@' {
			t.matched(child, rest, more, visit)
		}
	}
}

func (t *topics) matched(n *level[*route], rest string, more bool, visit func(*route)) {
	if more {
		t.matching(n, rest, false, visit)
	} else if n.value != nil {
		visit(n.value)
	}
}

// all visits every route at n and below.
func (t *topics) all(n *level[*route], first bool, visit func(*route)) {
	if n.value != nil {
		visit(n.value)
	}
	for name, child := range n.children {
		if !first || name[0] != '@' {
			t.all(child, false, visit)
		}
	}
}
