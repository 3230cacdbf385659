package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// publishing is one run of `postbus pub`.
type publishing struct {
	bodies
	target     *target
	topic      string
	headers    []string
	requireSub bool
	waitSubs   int
	timeout    time.Duration
	receipt    bool

	opts client.PublishOptions
}

func newPub(to *target) *cobra.Command {
	p := &publishing{target: to}
	cmd := &cobra.Command{
		Use:   "pub TOPIC [BODY]",
		Short: "Publish messages",
		Long: `Pub publishes BODY to TOPIC. Without BODY all of standard input is one message;
with -l each of its lines is one, with -0 each piece that ends in a NUL byte. With
BODY standard input is left alone, so that pub can stand in a "while read" loop.

It ends with 0 only when the broker has acknowledged every message: each has been
given to all who are subscribed. At a refusal it stops.`,
		Example: `  postbus pub build/linux/done ok
  make 2>&1 | postbus pub -l build/linux/log
  find . -print0 | postbus pub -0 files/found
  postbus pub --wait-subs 1 --timeout 10s job/start "$id"   # once somebody listens
  postbus pub --require-sub alarm/fire kitchen || echo nobody heard it`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.topic = args[0]
			if len(args) == 2 {
				p.body = []byte(args[1])
			}
			return p.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	p.bodies.addFlags(cmd)
	flags.StringArrayVarP(&p.headers, "header", "H", nil, "give each message the header `KEY=VALUE`; may be repeated")
	flags.BoolVar(&p.requireSub, "require-sub", false, "a message that nobody is subscribed to is an error (exit 100)")
	flags.IntVar(&p.waitSubs, "wait-subs", 0, "first wait until `N` subscriptions would get a message")
	flags.DurationVar(&p.timeout, "timeout", 0, "give up (exit 124) after `TIME` in all, such as 10s (default: never)")
	flags.BoolVarP(&p.receipt, "receipt", "v", false,
		"print for each message how many subscribers got it and how many\nqueues took it; waits for each one")
	return cmd
}

func (p *publishing) run(ctx context.Context) error {
	if err := p.check(); err != nil {
		return err
	}
	ctx, cancel := withTimeout(ctx, p.timeout)
	defer cancel()
	return p.connectAndPublish(ctx)
}

// check finds what is wrong with the arguments before anything is done.
func (p *publishing) check() error {
	if err := p.bodies.check(); err != nil {
		return err
	}
	if p.waitSubs < 0 {
		return usagef("--wait-subs %d: it must be 0 or more", p.waitSubs)
	}
	if p.timeout < 0 {
		return usagef("--timeout %v: it must be 0 or more", p.timeout)
	}
	if err := wire.CheckTopic(p.topic); err != nil {
		return &usageError{err}
	}
	p.opts.RequireSubscriber = p.requireSub
	headers, err := parseHeaders(p.headers)
	p.opts.Headers = headers
	return err
}

func (p *publishing) connectAndPublish(ctx context.Context) error {
	c, err := client.Dial(ctx, autostarting(p.target.options("postbus pub")))
	if err != nil {
		return err
	}
	defer c.Close()
	if p.waitSubs > 0 {
		if _, err := c.AwaitSubscribers(ctx, p.topic, p.waitSubs); err != nil {
			return err
		}
	}
	// While input is waited for there is time to hear what the broker thinks of the
	// messages so far: a refusal must not have to wait for the end of `tail -f`.
	return withInput(ctx, c, c.Flush, func(ctx context.Context, in *input) error {
		return p.publishAll(ctx, c, p.source(in, c.Server().MaxMessage))
	})
}

// publishAll publishes what next gives and waits for the broker's verdict on all of it.
func (p *publishing) publishAll(ctx context.Context, c *client.Client, next source) error {
	publish := c.Publish
	if p.receipt {
		publish = func(ctx context.Context, topic string, body []byte, opts *client.PublishOptions) error {
			return publishWithReceipt(ctx, c, topic, body, opts)
		}
	}
	for first := true; ; first = false {
		body, err := next()
		if err == nil {
			err = publish(ctx, p.topic, body, &p.opts)
		}
		if err == nil && first { // what is refused by its topic is so for every message
			err = c.Flush(ctx)
		}
		if err == nil {
			continue
		}
		// What was published is to arrive, though the rest of the input is bad.
		if ferr := c.Flush(ctx); err == io.EOF {
			return ferr
		}
		return err
	}
}

// publishWithReceipt publishes one message and prints what the broker says of it.
func publishWithReceipt(ctx context.Context, c *client.Client, topic string, body []byte, opts *client.PublishOptions) error {
	receipt, err := c.PublishWait(ctx, topic, body, opts)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%d %d\n", receipt.Subscribers, receipt.Queues)
	return err
}
