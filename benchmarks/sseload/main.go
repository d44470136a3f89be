// sseload opens event streams, has a server publish, and checks what arrives: that every
// stream gets every event, once, in order. It prints one JSON object. Standard library
// only, HTTP/1.1 over TCP, loopback addresses only.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type headerList []string

func (h *headerList) String() string     { return fmt.Sprint(*h) }
func (h *headerList) Set(s string) error { *h = append(*h, s); return nil }

var (
	fURL     = flag.String("url", "", "what to subscribe to")
	fN       = flag.Int("n", 100, "streams")
	fEvents  = flag.Int("events", 0, "events expected per stream (0: none, only hold the streams)")
	fTimeout = flag.Duration("timeout", 60*time.Second, "give up this long after the first POST")
	fHold    = flag.Duration("hold", 0, "stay idle this long once all streams are open")
	fConc    = flag.Int("connect-conc", 128, "streams being opened at one time")
	fSrc     = flag.Int("src", 1, "source addresses 127.0.0.1..k to spread the streams over")
	fStall   = flag.Int("stall", 0, "of the streams, this many read the response head and no more")
	fRcvbuf  = flag.Int("stall-rcvbuf", 8192, "SO_RCVBUF of the stalled ones")
	fBuf     = flag.Int("buf", 65536, "read buffer, shared by all streams")
	fPost    = flag.String("post", "", "what to POST to once all streams are open")
	fPostN   = flag.Int("post-n", 1, "POSTs")
	fPostR   = flag.Float64("post-rate", 0, "POSTs per second (0: as fast as they are answered)")
	fPostW   = flag.Bool("post-wait", false, "POST the next only when all streams have the one before")
	fBody    = flag.String("post-body", "", "{stamp}: t=… s=…, {pad}: filler up to -post-size")
	fSize    = flag.Int("post-size", 128, "bytes of {stamp}{pad}")
	fPids    = flag.String("pid", "", "server processes: CPU time and memory are reported; 12+ with children")
	fSignal  = flag.Int("sigterm", 0, "at the end send SIGTERM to this process and see how the streams end")
	fSigWait = flag.Duration("sigterm-wait", 15*time.Second, "how long to wait for that")
	fProcs   = flag.Int("procs", 0, "GOMAXPROCS (0: default)")
	fPostH   headerList
)

type result map[string]any

func main() {
	flag.Var(&fPostH, "post-H", "header 'Name: value' of POSTs (repeatable)")
	flag.Parse()
	if *fProcs > 0 {
		runtime.GOMAXPROCS(*fProcs)
	}
	target := loopback(*fURL)
	if *fPost != "" {
		loopback(*fPost)
	}
	raiseFileLimit()
	res := run(target)
	out, _ := json.Marshal(res)
	fmt.Println(string(out))
}

func loopback(raw string) *url.URL {
	u, err := url.Parse(raw)
	if err == nil && u.Scheme == "http" {
		if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLoopback() {
			return u
		}
	}
	fmt.Fprintf(os.Stderr, "sseload: %q is no http URL of a loopback address\n", raw)
	os.Exit(2)
	return nil
}

func raiseFileLimit() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}

func run(target *url.URL) result {
	pids := pidList(*fPids)
	before := look(pids)
	streams := make([]*stream, *fN)
	for i := range streams {
		streams[i] = &stream{id: i, stalls: i >= *fN-*fStall}
	}
	own0 := ownCPU()
	t0 := time.Now()
	connect(target, streams)
	connectWall := time.Since(t0)
	own1 := ownCPU()
	connected := look(pids)
	time.Sleep(*fHold)
	held := look(pids)

	res := result{"n": *fN, "events_expected": *fEvents}
	res["connect"] = connecting(streams, connectWall, own1-own0)
	own2 := ownCPU()
	t1 := time.Now()
	posting := startPosting(streams)
	peak, timedOut := waitForEvents(pids)
	runWall := time.Since(t1)
	own3 := ownCPU()
	after := look(pids)
	select {
	case <-posting.done:
	case <-time.After(2 * time.Second):
	}
	if *fSignal > 0 {
		res["ending"] = endServer(streams)
	}
	if *fStall > 0 {
		res["stalled"] = drainStalled(streams)
	}
	for _, s := range streams {
		s.close()
	}
	readers.Wait()
	res["delivery"] = delivered(streams, t1, timedOut)
	res["latency"] = latencies()
	if *fPost != "" {
		res["post"] = posting.figures()
	}
	if len(pids) > 0 {
		res["server"] = result{
			"cpu_connect_s": connected.cpu - before.cpu,
			"cpu_run_s":     after.cpu - held.cpu,
			"rss_before_kb": before.rss, "rss_held_kb": held.rss,
			"rss_after_kb": after.rss, "rss_peak_kb": max(peak, after.rss),
		}
	}
	res["load"] = result{
		"cpu_connect_s": own1 - own0, "cpu_run_s": own3 - own2, "run_s": runWall.Seconds(),
		"connect_s": connectWall.Seconds(), "procs": runtime.GOMAXPROCS(0),
	}
	if errs := errorCounts(); len(errs) > 0 {
		res["errors"] = errs
	}
	return res
}

func connect(target *url.URL, streams []*stream) {
	turns := make(chan struct{}, *fConc)
	var opening sync.WaitGroup
	for _, s := range streams {
		opening.Add(1)
		turns <- struct{}{}
		go func() {
			s.open(target)
			<-turns
			opening.Done()
		}()
	}
	opening.Wait()
}

func connecting(streams []*stream, wall time.Duration, cpu float64) result {
	var took []time.Duration
	for _, s := range streams {
		if s.conn != nil {
			took = append(took, s.opened)
		}
	}
	sort.Slice(took, func(a, b int) bool { return took[a] < took[b] })
	res := result{"opened": len(took), "wall_s": wall.Seconds(), "load_cpu_s": cpu}
	if len(took) > 0 {
		res["per_s"] = float64(len(took)) / wall.Seconds()
		res["p50_ms"] = ms(took[len(took)/2])
		res["p99_ms"] = ms(took[len(took)*99/100])
	}
	return res
}

// waitForEvents returns the highest memory seen meanwhile.
func waitForEvents(pids []int) (peak int64, timedOut bool) {
	if *fEvents == 0 {
		return 0, false
	}
	live := int64(*fN - *fStall)
	deadline := time.Now().Add(*fTimeout)
	for k := 1; complete.Load()+endedEarly.Load() < live; k++ {
		if time.Now().After(deadline) {
			return peak, true
		}
		time.Sleep(2 * time.Millisecond)
		if k%50 == 0 {
			peak = max(peak, look(pids).rss)
		}
	}
	return peak, false
}

func endServer(streams []*stream) result {
	t0 := time.Now()
	sinceSignal.Store(true)
	_ = syscall.Kill(*fSignal, syscall.SIGTERM)
	all := make(chan struct{})
	go func() { readers.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(*fSigWait):
	}
	last := time.Since(t0)
	ended, complete, told := 0, 0, 0
	for _, s := range streams {
		if s.over.Load() {
			ended++
			if s.properEnd {
				complete++
			}
			if s.farewell {
				told++
			}
		}
	}
	gone := -1.0
	for time.Since(t0) < *fSigWait+5*time.Second {
		if syscall.Kill(*fSignal, 0) != nil || zombie(*fSignal) {
			gone = time.Since(t0).Seconds()
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return result{
		"streams_ended": ended, "body_complete": complete, "farewell": told,
		"last_stream_s": last.Seconds(), "exit_s": gone,
	}
}

func drainStalled(streams []*stream) result {
	var closed, nbytes, events atomic.Int64
	var wg sync.WaitGroup
	for _, s := range streams {
		if s.stalls && s.conn != nil {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if s.drain() {
					closed.Add(1)
				}
				nbytes.Add(s.nbytes)
				events.Add(int64(s.events))
			}()
		}
	}
	wg.Wait()
	return result{
		"n": *fStall, "closed_by_server": closed.Load(),
		"bytes": nbytes.Load(), "events": events.Load(),
	}
}

func delivered(streams []*stream, t1 time.Time, timedOut bool) result {
	var total, nbytes, gaps int64
	var dups, backs, short, firstNotOne int
	var first, last time.Time
	least, most := math.MaxInt, 0
	for _, s := range streams {
		if s.stalls {
			continue
		}
		total += int64(s.events)
		nbytes += s.nbytes
		dups += s.dups
		backs += s.backs
		gaps += s.gaps
		least, most = min(least, s.events), max(most, s.events)
		if s.events < *fEvents {
			short++
		}
		if s.firstSeq > 1 {
			firstNotOne++
		}
		if !s.first.IsZero() && (first.IsZero() || s.first.Before(first)) {
			first = s.first
		}
		if s.last.After(last) {
			last = s.last
		}
	}
	res := result{
		"events": total, "bytes": nbytes, "least": least, "most": most, "timed_out": timedOut,
		"short": short, "duplicates": dups, "gaps": gaps, "backwards": backs,
		"late_starts": firstNotOne, "ended_early": endedEarly.Load(),
	}
	if total > 0 {
		res["first_to_last_s"] = last.Sub(first).Seconds()
		res["post_to_last_s"] = last.Sub(t1).Seconds()
		res["per_s"] = float64(total) / last.Sub(t1).Seconds()
	}
	return res
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }
