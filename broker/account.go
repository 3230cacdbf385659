package broker

// account is what the broker keeps for one uid, over all its connections.
type account struct {
	connections int
	buffered    int // bytes: subscriptions, frames not complete, answers not read
	awaits      int // open
}

// charge adds to what p's connection and uid are charged, in bytes; less when
// negative.
func (p *peer) charge(bytes int) {
	p.buffered += bytes
	p.account.buffered += bytes
}

// recharge charges for what p's own buffers take now.
func (p *peer) recharge() {
	now := cap(p.in) + cap(p.out) + p.judged + p.awaited + p.parkedBytes
	p.charge(now - p.held)
	p.held = now
}

// room reports whether size more bytes may be kept for p.
func (l *loop) room(p *peer, size int) bool {
	return p.buffered+size <= l.opts.MaxConnectionBytes && p.account.buffered+size <= l.opts.MaxUserBytes
}

// crowded reports whether half of what may be kept for p is.
func (l *loop) crowded(p *peer) bool {
	return p.buffered > l.opts.MaxConnectionBytes/2 || p.account.buffered > l.opts.MaxUserBytes/2
}
