package examples_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postbus/postbus/client"
	"github.com/postbus/postbus/wire"
)

// conversation carries out the commands that testdata/conversation.txt explains; it
// does what python/conversation.py does, in the same order.
type conversation struct {
	address       string
	client        *client.Client
	subscriptions map[string]*client.Subscription
	latest        map[string]*client.Message // by name of the subscription
	firstSeq      uint64
	consumers     map[string]*client.Consumer
	taken         map[string]*client.Delivery // by name of the consumer and number
	finishing     sync.WaitGroup
}

func newConversation(address string) *conversation {
	return &conversation{
		address:       address,
		subscriptions: make(map[string]*client.Subscription),
		latest:        make(map[string]*client.Message),
		consumers:     make(map[string]*client.Consumer),
		taken:         make(map[string]*client.Delivery),
	}
}

var verbs = map[string]func(c *conversation, ctx context.Context, words []string) (string, error){
	"connect":     (*conversation).connect,
	"subscribe":   (*conversation).subscribe,
	"publish":     (*conversation).publish,
	"send":        (*conversation).send,
	"flush":       (*conversation).flush,
	"next":        (*conversation).next,
	"origin":      (*conversation).origin,
	"waiting":     (*conversation).waiting,
	"count":       (*conversation).count,
	"counted":     (*conversation).counted,
	"unsubscribe": (*conversation).unsubscribe,
	"drain":       (*conversation).drain,
	"queue":       (*conversation).queue,
	"push":        (*conversation).push,
	"put":         (*conversation).put,
	"consume":     (*conversation).consume,
	"take":        (*conversation).take,
	"ack":         (*conversation).ack,
	"confirm":     (*conversation).confirm,
	"nack":        (*conversation).nack,
	"reject":      (*conversation).reject,
	"extend":      (*conversation).extend,
	"settled":     (*conversation).settled,
	"finish":      (*conversation).finish,
	"ping":        (*conversation).ping,
	"await":       (*conversation).await,
	"close":       (*conversation).close,
}

// run carries out one command and returns the text behind the arrow.
func (c *conversation) run(ctx context.Context, command string) string {
	words := strings.Fields(command)
	result, err := verbs[words[0]](c, ctx, words[1:])
	var refused *wire.Error
	switch {
	case err == nil:
		return result
	case errors.Is(err, client.ErrLeaseLost): // there may be why inside
		return wire.CodeLeaseLost.String()
	case errors.Is(err, client.ErrClosed):
		return "closed"
	case errors.Is(err, client.ErrDrained):
		return "end"
	case errors.Is(err, client.ErrBadOption): // the client may find it itself
		return wire.CodeBadOption.String()
	case errors.As(err, &refused):
		return refused.Code.String()
	}
	return err.Error()
}

func (c *conversation) connect(ctx context.Context, _ []string) (_ string, err error) {
	c.client, err = client.Dial(ctx, &client.Options{Address: c.address, NoReconnect: true})
	return "ok", err
}

func (c *conversation) subscribe(ctx context.Context, words []string) (string, error) {
	var filters []string
	opts := client.SubscribeOptions{Policy: wire.DropOld}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "policy":
			opts.Policy, err = wire.ParsePolicy(value)
		case "messages":
			opts.BufferMessages, err = strconv.Atoi(value)
		case "credit":
			opts.Credit, err = strconv.Atoi(value)
		case "no-local":
			opts.NoLocal = true
		default:
			filters = append(filters, word)
		}
		if err != nil {
			return "", err
		}
	}
	opts.Filters = filters[1:]
	s, err := c.client.Subscribe(ctx, filters[0], &opts)
	if err != nil {
		return "", err
	}
	c.subscriptions[words[0]] = s
	return "ok", nil
}

func (c *conversation) publish(ctx context.Context, words []string) (string, error) {
	receipt, err := c.client.PublishWait(ctx, words[0], parse(words[1]), parseOptions(words[2:]))
	return fmt.Sprintf("taken by %d", receipt.Subscribers), err
}

func (c *conversation) send(ctx context.Context, words []string) (string, error) {
	return "ok", c.client.Publish(ctx, words[0], parse(words[1]), parseOptions(words[2:]))
}

func (c *conversation) flush(ctx context.Context, _ []string) (string, error) {
	return "ok", c.client.Flush(ctx)
}

func (c *conversation) next(ctx context.Context, words []string) (string, error) {
	m, err := c.subscriptions[words[0]].Next(ctx)
	var gap *client.Gap
	if errors.As(err, &gap) {
		return fmt.Sprintf("gap %d of %d..%d %s", gap.Count,
			gap.First-c.firstSeq+1, gap.Last-c.firstSeq+1, gap.Reason), nil
	}
	if err != nil {
		return "", err
	}
	c.latest[words[0]] = m
	if c.firstSeq == 0 {
		c.firstSeq = m.Seq
	}
	result := m.Topic + " " + show(m.Body)
	headers := m.Headers()
	for _, key := range slices.Sorted(maps.Keys(headers)) {
		result += " " + key + "=" + headers[key]
	}
	return result, nil
}

func (c *conversation) origin(_ context.Context, words []string) (string, error) {
	m := c.latest[words[0]]
	me := client.Peer{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: uint32(os.Getpid())}
	whose, when := "foreign", "long ago"
	if m.From == me {
		whose = "mine"
	}
	if time.Since(m.Time).Abs() < time.Minute {
		when = "just now"
	}
	return whose + ", " + when, nil
}

func (c *conversation) waiting(ctx context.Context, words []string) (string, error) {
	// What the broker sent before its answer has come too.
	err := c.client.Ping(ctx)
	return strconv.Itoa(c.subscriptions[words[0]].Buffered()), err
}

func (c *conversation) count(ctx context.Context, words []string) (string, error) {
	n, err := strconv.Atoi(words[1])
	for i := 0; i < n && err == nil; i++ {
		err = c.client.Publish(ctx, words[0], []byte(strconv.Itoa(i+1)), nil)
	}
	return "ok", err
}

func (c *conversation) counted(ctx context.Context, words []string) (string, error) {
	n, err := strconv.Atoi(words[1])
	for i := 0; i < n && err == nil; i++ {
		var m *client.Message
		m, err = c.subscriptions[words[0]].Next(ctx)
		if err == nil && string(m.Body) != strconv.Itoa(i+1) {
			return fmt.Sprintf("%s instead of %d", m.Body, i+1), nil
		}
	}
	return "in order", err
}

func (c *conversation) unsubscribe(_ context.Context, words []string) (string, error) {
	if consumer := c.consumers[words[0]]; consumer != nil {
		return "ok", consumer.Close()
	}
	return "ok", c.subscriptions[words[0]].Close()
}

func (c *conversation) drain(ctx context.Context, words []string) (string, error) {
	return "ok", c.subscriptions[words[0]].Drain(ctx)
}

func (c *conversation) ping(ctx context.Context, _ []string) (string, error) {
	return "ok", c.client.Ping(ctx)
}

func (c *conversation) await(ctx context.Context, words []string) (string, error) {
	n, err := strconv.Atoi(words[1])
	if err != nil {
		return "", err
	}
	n, err = c.client.AwaitSubscribers(ctx, words[0], n)
	return strconv.Itoa(n), err
}

func (c *conversation) close(context.Context, []string) (string, error) {
	if c.client == nil {
		return "never connected", nil
	}
	err := c.client.Close()
	c.finishing.Wait()
	return "ok", err
}

// parse returns the body that a word of the script stands for.
func parse(word string) []byte {
	if word == `""` {
		return nil
	}
	if digits, ok := strings.CutPrefix(word, "0x"); ok {
		if body, err := hex.DecodeString(digits); err == nil {
			return body
		}
	}
	word, times, _ := strings.Cut(word, "*")
	if n, err := strconv.Atoi(times); err == nil {
		return []byte(strings.Repeat(word, n))
	}
	return []byte(word)
}

// parseOptions returns what the words behind a publish's body stand for.
func parseOptions(words []string) *client.PublishOptions {
	opts := &client.PublishOptions{Headers: make(map[string]string)}
	for _, word := range words {
		if key, value, ok := strings.Cut(word, "="); ok {
			opts.Headers[key] = string(parse(value))
		} else if word == "require" {
			opts.RequireSubscriber = true
		}
	}
	return opts
}

// show returns the word of the script that stands for a body.
func show(body []byte) string {
	switch {
	case len(body) == 0:
		return `""`
	case len(body) > 64:
		return fmt.Sprintf("%d bytes %08x", len(body), crc32.ChecksumIEEE(body))
	case slices.ContainsFunc(body, func(b byte) bool { return b < 0x21 || b > 0x7e }):
		return "0x" + hex.EncodeToString(body)
	}
	return string(body)
}
