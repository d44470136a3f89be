package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	readers     sync.WaitGroup // the streams that are being read
	complete    atomic.Int64   // streams that have all the events expected
	endedEarly  atomic.Int64   // streams that ended without them, or never opened
	sinceSignal atomic.Bool
	errMu       sync.Mutex
	errCount    = map[string]int{}
	buffers     = sync.Pool{New: func() any { b := make([]byte, *fBuf); return &b }}
)

func noteError(err error) {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	errMu.Lock()
	errCount[text]++
	errMu.Unlock()
}

func errorCounts() map[string]int {
	errMu.Lock()
	defer errMu.Unlock()
	return errCount
}

// stream is one event stream and what was seen of it. Its reader owns it until the end.
type stream struct {
	id      int
	stalls  bool
	conn    net.Conn
	rest    []byte // of the body, came with the head
	chunked bool
	chunks  chunkReader
	opened  time.Duration

	carry    []byte // an unfinished line, at most maxLine of it
	hasData  bool   // of the event being read
	stamp    int64  // t= of the event being read
	seq      int64  // s= of the event being read
	lastSeq  int64
	firstSeq int64
	pending  []int64 // stamps of events of this read

	events    int
	nbytes    int64
	dups      int
	backs     int
	gaps      int64
	first     time.Time
	last      time.Time
	farewell  bool // a comment or a retry: after SIGTERM
	properEnd bool // the last chunk came
	over      atomic.Bool
}

func (s *stream) close() {
	if s.conn != nil {
		s.conn.Close()
	}
}

// open connects, sends the request, reads the response head, and starts reading.
func (s *stream) open(target *url.URL) {
	t0 := time.Now()
	err := s.connect(target)
	if err != nil {
		noteError(err)
		if s.conn != nil {
			s.conn.Close()
			s.conn = nil
		}
		if !s.stalls {
			endedEarly.Add(1)
		}
		return
	}
	s.opened = time.Since(t0)
	if !s.stalls {
		readers.Add(1)
		go s.read()
	}
}

func (s *stream) connect(target *url.URL) error {
	dialer := net.Dialer{Timeout: 30 * time.Second, KeepAlive: -1}
	if *fSrc > 1 {
		k := s.id % *fSrc
		dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, byte(k/250), byte(1+k%250))}
	}
	if s.stalls {
		dialer.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, *fRcvbuf)
			})
		}
	}
	conn, err := dialer.Dial("tcp", target.Host)
	if err != nil {
		return err
	}
	s.conn = conn
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n"+
		"Cache-Control: no-cache\r\nUser-Agent: sseload\r\n\r\n", target.RequestURI(), target.Host)
	if err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(60 * time.Second))
	reader := bufio.NewReaderSize(conn, 2048)
	s.chunked, err = readHead(reader)
	if err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Time{})
	rest, _ := reader.Peek(reader.Buffered())
	s.rest = append([]byte(nil), rest...)
	return nil
}

func readHead(reader *bufio.Reader) (chunked bool, err error) {
	line, err := reader.ReadString('\n')
	if err != nil {
		return false, err
	}
	if f := strings.SplitN(strings.TrimSpace(line), " ", 3); len(f) < 2 || f[1] != "200" {
		return false, fmt.Errorf("status: %s", strings.TrimSpace(line))
	}
	for {
		line, err = reader.ReadString('\n')
		if err != nil {
			return false, err
		}
		line = strings.ToLower(strings.TrimSpace(line))
		if line == "" {
			return chunked, nil
		}
		if strings.HasPrefix(line, "transfer-encoding:") && strings.Contains(line, "chunked") {
			chunked = true
		}
	}
}

func (s *stream) read() {
	defer readers.Done()
	full := false
	next := s.reader()
	end := s.take(s.rest)
	s.rest = nil
	for {
		if !full && *fEvents > 0 && s.events >= *fEvents {
			full = true
			complete.Add(1)
		}
		if end {
			break
		}
		end = next()
	}
	s.over.Store(true)
	if !full {
		endedEarly.Add(1)
	}
}

// reader returns what reads the next piece of the stream and takes it, and says whether
// the stream has ended. It has no buffer in its hands while it waits, so that ten thousand
// idle streams hold none.
func (s *stream) reader() func() bool {
	raw, err := s.conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return func() bool { return true }
	}
	end := false
	try := func(fd uintptr) bool {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		n, err := syscall.Read(int(fd), *buf)
		if err == syscall.EAGAIN {
			return false // wait, and be called again
		}
		if err != syscall.EINTR {
			end = n <= 0 || s.take((*buf)[:n])
		}
		return true
	}
	return func() bool { return raw.Read(try) != nil || end }
}

// take counts what is in b; whether the body has ended with it.
func (s *stream) take(b []byte) (end bool) {
	if len(b) == 0 {
		return false
	}
	before := s.events
	if s.chunked {
		end = s.chunks.feed(b, s)
		s.properEnd = s.properEnd || end
	} else {
		s.body(b)
	}
	if s.events != before && !s.stalls {
		now := time.Now()
		if before == 0 {
			s.first = now
		}
		s.last = now
		record(s.id, now.UnixNano(), s.pending)
		s.pending = s.pending[:0]
		delivered64.Add(int64(s.events - before))
	}
	return end
}

// drain reads what a stalled stream was left with; whether the server had closed it.
func (s *stream) drain() bool {
	buf := make([]byte, 65536)
	if s.take(s.rest) {
		return true
	}
	for s.nbytes < 256<<20 {
		_ = s.conn.SetReadDeadline(time.Now().Add(1500 * time.Millisecond))
		n, err := s.conn.Read(buf)
		if s.take(buf[:n]) {
			return true
		}
		if err != nil {
			var ne net.Error
			return !(errors.As(err, &ne) && ne.Timeout())
		}
	}
	return false
}

const maxLine = 512

// body takes decoded bytes; of a line only the first maxLine are looked at.
func (s *stream) body(b []byte) {
	s.nbytes += int64(len(b))
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		piece := b
		if i >= 0 {
			piece = b[:i]
		}
		if i < 0 || len(s.carry) > 0 {
			s.carry = append(s.carry, piece[:min(len(piece), maxLine-len(s.carry))]...)
			if i < 0 {
				return
			}
			s.line(s.carry)
			s.carry = s.carry[:0]
		} else {
			s.line(piece)
		}
		b = b[i+1:]
	}
}

func (s *stream) line(l []byte) {
	if n := len(l); n > 0 && l[n-1] == '\r' {
		l = l[:n-1]
	}
	if len(l) == 0 {
		if s.hasData {
			s.event()
		}
		s.hasData, s.stamp, s.seq = false, 0, 0
		return
	}
	switch l[0] {
	case 'd':
		if len(l) > 5 && l[4] == ':' {
			s.hasData = true
			if s.stamp == 0 {
				s.stamp, s.seq = stamps(l[5:])
			}
		}
	case ':', 'r':
		if sinceSignal.Load() {
			s.farewell = true
		}
	}
}

func (s *stream) event() {
	s.events++
	if s.stamp > 0 {
		s.pending = append(s.pending, s.stamp)
	}
	switch {
	case s.seq == 0:
	case s.firstSeq == 0:
		s.firstSeq, s.lastSeq = s.seq, s.seq
	case s.seq == s.lastSeq+1:
		s.lastSeq = s.seq
	case s.seq == s.lastSeq:
		s.dups++
	case s.seq < s.lastSeq:
		s.backs++
	default:
		s.gaps += s.seq - s.lastSeq - 1
		s.lastSeq = s.seq
	}
}

// stamps reads "t=123 s=4", wherever it begins.
func stamps(l []byte) (t, s int64) {
	i := bytes.Index(l, []byte("t="))
	if i < 0 {
		return 0, 0
	}
	t, i = number(l, i+2)
	if bytes.HasPrefix(l[i:], []byte(" s=")) {
		s, _ = number(l, i+3)
	}
	return t, s
}

func number(l []byte, i int) (v int64, end int) {
	for i < len(l) && '0' <= l[i] && l[i] <= '9' {
		v = v*10 + int64(l[i]-'0')
		i++
	}
	return v, i
}

// chunkReader takes the chunked coding off (RFC 9112, 7.1).
type chunkReader struct {
	state int // 0 size, 1 data, 2 the line end after data
	left  int
	size  []byte
}

func (c *chunkReader) feed(b []byte, s *stream) (end bool) {
	for len(b) > 0 {
		if c.state == 0 {
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				c.size = append(c.size, b...)
				return false
			}
			line := b[:i]
			if len(c.size) > 0 {
				c.size = append(c.size, line...)
				line = c.size
			}
			c.left = hex(line)
			c.size = c.size[:0]
			b = b[i+1:]
			if c.left == 0 {
				return true
			}
			c.state = 1
			continue
		}
		k := min(c.left, len(b))
		if c.state == 1 {
			s.body(b[:k])
		}
		b = b[k:]
		if c.left -= k; c.left == 0 {
			c.state, c.left = (c.state+1)%3, 2
		}
	}
	return false
}

func hex(l []byte) (v int) {
	for _, x := range l {
		switch {
		case '0' <= x && x <= '9':
			v = v<<4 | int(x-'0')
		case 'a' <= x|0x20 && x|0x20 <= 'f':
			v = v<<4 | int(x|0x20-'a'+10)
		default:
			return v
		}
	}
	return v
}
