package broker

// account is what the broker keeps for one uid, over all its connections.
type account struct {
	connections int
	buffered    int // bytes: subscriptions' buffers and incomplete frames
	unacked     int // bytes of publishes whose verdict is held back
}

// charge adds to what p's connection and uid are charged, in bytes; less when
// negative.
func (p *peer) charge(bytes int) {
	p.buffered += bytes
	p.account.buffered += bytes
}

// recharge charges for what p's own buffers take now.
func (p *peer) recharge() {
	now := cap(p.in) + cap(p.out)
	p.charge(now - p.held)
	p.held = now
}

// room reports whether size more bytes may be kept for p. What does not fit the
// bound at all fits an empty account, so that a message above it can pass.
func (l *loop) room(p *peer, size int) bool {
	return (p.buffered == 0 || p.buffered+size <= l.opts.MaxConnectionBytes) &&
		(p.account.buffered == 0 || p.account.buffered+size <= l.opts.MaxUserBytes)
}
