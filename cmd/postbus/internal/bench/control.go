package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// What goes over the pipes, a line each. Down: the job as JSON, then goLine, and
// finishLine when nothing more will be sent; where there are rounds, goLine for each.
// Other lines are requests to the role "broker". Up: a report when ready, one at the
// end of each round, one at the end. When the pipe from above ends, so does the child.
const (
	goLine     = "go"
	finishLine = "finish"
)

// report is what a child says.
type report struct {
	Ready  bool    `json:"ready,omitempty"`
	Result *result `json:"result,omitempty"`
	More   bool    `json:"more,omitempty"` // another result follows
	Error  string  `json:"error,omitempty"`
}

// control is a child's end of the pipes.
type control struct {
	out    *json.Encoder
	goes   chan struct{} // one for each goLine
	finish chan struct{} // closed at finishLine
	asked  chan string   // other lines
}

// roles are what a child process can be.
var roles = map[string]func(*job, *control) (*result, error){
	"publisher":  publish,
	"pusher":     push,
	"consumer":   consume,
	"subscriber": subscribe,
	"ping":       ping,
	"echo":       echo,
	"idler":      idle,
	"relay":      relay,
	"broker":     serve,
}

// Roles returns the names that Child takes.
func Roles() []string {
	names := make([]string, 0, len(roles))
	for name := range roles {
		names = append(names, name)
	}
	return names
}

// Child runs this process as one of a bench's parties. It reads its job from in,
// reports to out, and returns when that is done; it ends the process when in ends
// before, for then whoever gave the job is gone.
func Child(role string, in io.Reader, out io.Writer) error {
	run, ok := roles[role]
	if !ok {
		return fmt.Errorf("bench has no role %q", role)
	}
	lines := bufio.NewReader(in)
	var j job
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &j)
	}
	if err != nil {
		return usage("bench %s is started by bench itself, with a job on its standard input: %v", role, err)
	}
	c := &control{out: json.NewEncoder(out), goes: make(chan struct{}, 1), finish: make(chan struct{}), asked: make(chan string, 1)}
	go c.listen(lines)
	r, err := run(&j, c)
	if err != nil {
		return c.out.Encode(report{Error: err.Error()})
	}
	return c.out.Encode(report{Result: r})
}

// listen reads the parent's lines.
func (c *control) listen(lines *bufio.Reader) {
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			os.Exit(1)
		}
		switch line {
		case goLine + "\n":
			c.goes <- struct{}{}
		case finishLine + "\n":
			close(c.finish)
		default:
			c.asked <- strings.TrimSuffix(line, "\n")
		}
	}
}

// ready says that this party is ready and waits until all are.
func (c *control) ready() error {
	if err := c.out.Encode(report{Ready: true}); err != nil {
		return err
	}
	<-c.goes
	return nil
}

// tell reports what came of a round that is not the last, or of a request.
func (c *control) tell(r *result) error { return c.out.Encode(report{Result: r, More: true}) }
