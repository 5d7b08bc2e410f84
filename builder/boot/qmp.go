package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// qmp speaks the QEMU Machine Protocol: lines of JSON, one command at a time.
type qmp struct {
	mu      sync.Mutex
	conn    io.Writer
	answers chan answer
	closed  chan struct{} // once QEMU says no more
}

// answer is a line of QEMU's that isn't an event.
type answer struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
}

// newQMP greets QEMU, after which it takes commands.
func newQMP(ctx context.Context, conn io.ReadWriter) (*qmp, error) {
	q := &qmp{conn: conn, answers: make(chan answer, 1), closed: make(chan struct{})}
	go q.read(conn)
	a, err := q.next(ctx)
	if err != nil {
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	if a.QMP == nil {
		return nil, errors.New("QEMU's monitor doesn't greet")
	}
	if _, err := q.do(ctx, "qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return q, nil
}

func (q *qmp) read(r io.Reader) {
	defer close(q.closed)
	d := json.NewDecoder(r)
	for {
		var a answer
		if d.Decode(&a) != nil {
			return
		}
		if a.Event != "" {
			continue
		}
		select {
		case q.answers <- a:
		default: // nobody asked
		}
	}
}

// do runs a command.
func (q *qmp) do(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-q.answers: // to a command whose caller left
	default:
	}
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return nil, err
	}
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	a, err := q.next(ctx)
	if err != nil {
		return nil, fmt.Errorf("QEMU's monitor: %s: %w", command, err)
	}
	if a.Error != nil {
		return nil, fmt.Errorf("QEMU's monitor: %s: %s: %s", command, a.Error.Class, a.Error.Desc)
	}
	return a.Return, nil
}

// next is what QEMU says next.
func (q *qmp) next(ctx context.Context) (answer, error) {
	select {
	case a := <-q.answers:
		return a, nil
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	case <-q.closed:
	}
	select {
	case a := <-q.answers: // its last
		return a, nil
	default:
		return answer{}, io.ErrUnexpectedEOF
	}
}
