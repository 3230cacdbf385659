package store
import "fmt"
func (d *Disk) Debug() string {
	s := fmt.Sprintf("total %d filled %d live %d reach %d largest %d owed %d free %d settled %d floor %d move %v failed %v\n", d.total, d.filled, d.live, d.reach, d.largest, d.owed(0), d.free(), d.settled(d.free()), d.floor(d.active.live,0), d.move.seg!=nil, d.spares.failed)
	for _, g := range d.segments { s += fmt.Sprintf(" seg %d size %d end %d live %d largest %d\n", g.id, g.size, g.end, g.live, g.largest) }
	for _, p := range d.spares.ready { s += fmt.Sprintf(" spare %d\n", p.size) }
	return s
}
