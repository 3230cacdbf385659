package examples_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/postbus/postbus/client"
)

// What a conversation says of queues; do_queue and the others of python/conversation.py.

func (c *conversation) push(ctx context.Context, words []string) (string, error) {
	opts, err := pushOptions(words[2:])
	if err != nil {
		return "", err
	}
	receipt, err := c.client.Queue(words[0]).Push(ctx, parse(words[1]), opts)
	return receipt.Level.String(), err
}

func (c *conversation) put(ctx context.Context, words []string) (string, error) {
	opts, err := pushOptions(words[2:])
	if err != nil {
		return "", err
	}
	return "ok", c.client.Queue(words[0]).PushAsync(ctx, parse(words[1]), opts)
}

func (c *conversation) consume(ctx context.Context, words []string) (string, error) {
	var opts client.ConsumeOptions
	err := eachField(words[2:], func(key, value string, number int) bool {
		switch key {
		case "prefetch":
			opts.Prefetch = number
		case "lease_ms":
			opts.Lease = time.Duration(number) * time.Millisecond
		default:
			return false
		}
		return true
	})
	if err != nil {
		return "", err
	}
	consumer, err := c.client.Queue(words[1]).Consume(ctx, &opts)
	c.consumers[words[0]] = consumer
	return "ok", err
}

func (c *conversation) take(ctx context.Context, words []string) (string, error) {
	d, err := c.consumers[words[0]].Next(ctx)
	if err != nil {
		return "", err
	}
	c.taken[fmt.Sprint(words[0], " ", d.Seq)] = d
	return describe(d), nil
}

// delivery returns what a consumer has taken, by its name and the message's number.
func (c *conversation) delivery(words []string) *client.Delivery {
	return c.taken[words[0]+" "+words[1]]
}

func (c *conversation) ack(_ context.Context, words []string) (string, error) {
	return "ok", c.delivery(words).Ack()
}

func (c *conversation) confirm(ctx context.Context, words []string) (string, error) {
	return "ok", c.delivery(words).AckWait(ctx)
}

func (c *conversation) nack(_ context.Context, words []string) (string, error) {
	delay := 0
	if len(words) > 2 {
		var err error
		if delay, err = strconv.Atoi(words[2]); err != nil {
			return "", err
		}
	}
	return "ok", c.delivery(words).Nack(time.Duration(delay) * time.Millisecond)
}

func (c *conversation) reject(_ context.Context, words []string) (string, error) {
	return "ok", c.delivery(words).Reject(strings.Join(words[2:], " "))
}

func (c *conversation) extend(_ context.Context, words []string) (string, error) {
	by, err := strconv.Atoi(words[2])
	if err != nil {
		return "", err
	}
	return "ok", c.delivery(words).Extend(time.Duration(by) * time.Millisecond)
}

func (c *conversation) settled(ctx context.Context, words []string) (string, error) {
	return "ok", c.consumers[words[0]].Flush(ctx)
}

// finish starts a Drain, which lasts until all is settled, and returns once it has begun.
func (c *conversation) finish(ctx context.Context, words []string) (string, error) {
	consumer := c.consumers[words[0]]
	c.finishing.Go(func() {
		_ = consumer.Drain(ctx) // what it returns is seen by take and settled too
	})
	if _, err := consumer.Next(ctx); !errors.Is(err, client.ErrDrained) {
		return "", fmt.Errorf("it goes on: %w", err)
	}
	return "ok", nil
}

var queueVerbs = map[string]func(c *conversation, ctx context.Context, words []string) (string, error){
	"declare": (*conversation).queueDeclare,
	"list":    (*conversation).queueList,
	"info":    (*conversation).queueInfo,
	"peek":    (*conversation).queuePeek,
	"purge":   (*conversation).queuePurge,
	"requeue": (*conversation).queueRequeue,
	"pause":   queueSimply((*client.Queue).Pause),
	"resume":  queueSimply((*client.Queue).Resume),
	"drain":   queueSimply((*client.Queue).Drain),
	"delete":  queueSimply((*client.Queue).Delete),
}

func (c *conversation) queue(ctx context.Context, words []string) (string, error) {
	return queueVerbs[words[0]](c, ctx, words[1:])
}

func queueSimply(do func(*client.Queue, context.Context) error) func(*conversation, context.Context, []string) (string, error) {
	return func(c *conversation, ctx context.Context, words []string) (string, error) {
		return "ok", do(c.client.Queue(words[0]), ctx)
	}
}

func (c *conversation) queueDeclare(ctx context.Context, words []string) (string, error) {
	var opts client.QueueOptions
	err := eachField(words[1:], func(key, value string, number int) bool {
		switch key {
		case "level":
			opts.Level = value
		case "bind":
			opts.Bind = strings.Split(value, ",")
		case "max_messages":
			opts.MaxMessages = number
		case "max_bytes":
			opts.MaxBytes = int64(number)
		case "when_full":
			opts.WhenFull = value
		case "max_tries":
			opts.MaxTries = number
		case "dead_letter":
			opts.DeadLetter = value
		default:
			return false
		}
		return true
	})
	if err != nil {
		return "", err
	}
	_, err = c.client.Queue(words[0]).Declare(ctx, &opts)
	return "ok", err
}

func (c *conversation) queueList(ctx context.Context, _ []string) (string, error) {
	queues, err := c.client.Queues(ctx)
	var names []string
	for _, q := range queues {
		names = append(names, q.Name)
	}
	return strings.Join(names, " "), err
}

func (c *conversation) queueInfo(ctx context.Context, words []string) (string, error) {
	info, err := c.client.Queue(words[0]).Info(ctx)
	result := fmt.Sprintf("%d ready, %d delayed, %d leased, %d dead", info.Ready, info.Delayed, info.Leased, info.Dead)
	if info.Paused {
		result += ", paused"
	}
	if info.Draining {
		result += ", draining"
	}
	return result, err
}

func (c *conversation) queuePeek(ctx context.Context, words []string) (string, error) {
	opts := client.PeekOptions{State: strings.Join(words[1:], "")}
	var all []string
	for d, err := range c.client.Queue(words[0]).Peek(ctx, &opts) {
		if err != nil {
			return "", err
		}
		all = append(all, describe(d))
	}
	if len(all) == 0 {
		return "nothing", nil
	}
	return strings.Join(all, "; "), nil
}

func (c *conversation) queuePurge(ctx context.Context, words []string) (string, error) {
	n, err := c.client.Queue(words[0]).Purge(ctx, strings.Join(words[1:], ""))
	return strconv.Itoa(n), err
}

func (c *conversation) queueRequeue(ctx context.Context, words []string) (string, error) {
	limit := 0
	if len(words) > 1 {
		var err error
		if limit, err = strconv.Atoi(words[1]); err != nil {
			return "", err
		}
	}
	n, err := c.client.Queue(words[0]).Requeue(ctx, limit)
	return strconv.Itoa(n), err
}

// pushOptions returns what the words behind a push's body stand for.
func pushOptions(words []string) (*client.PushOptions, error) {
	var opts client.PushOptions
	err := eachField(words, func(key, value string, number int) bool {
		switch key {
		case "id":
			opts.ID = value
		case "key":
			opts.Key = value
		case "priority":
			opts.Priority = number
		case "delay_ms":
			opts.Delay = time.Duration(number) * time.Millisecond
		default:
			return false
		}
		return true
	})
	return &opts, err
}

// eachField calls use with each word of the kind KEY=VALUE, and with the number that
// the value may be. It reports a key that use does not know.
func eachField(words []string, use func(key, value string, number int) bool) error {
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		number, _ := strconv.Atoi(value)
		if !use(key, value, number) {
			return fmt.Errorf("the script has %q, which is not known here", word)
		}
	}
	return nil
}

// describe returns what the script shows of a queue's message.
func describe(d *client.Delivery) string {
	result := fmt.Sprintf("%d %s", d.Seq, show(d.Body))
	add := func(key, value string) {
		if value != "" {
			result += " " + key + "=" + value
		}
	}
	if d.State == "" && d.Tries != 1 {
		add("tries", strconv.Itoa(d.Tries))
	}
	add("key", d.Key)
	add("id", d.ID)
	if d.Priority != 0 {
		add("priority", strconv.Itoa(d.Priority))
	}
	add("origin", d.Origin)
	add("reason", d.Reason)
	add("state", d.State)
	if d.Redelivered {
		result += " redelivered"
	}
	return result
}
