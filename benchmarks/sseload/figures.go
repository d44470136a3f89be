package main

import (
	"fmt"
	"math"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

var delivered64 atomic.Int64 // events, by all streams

// histogram counts nanoseconds in 32 steps per power of two.
type histogram struct {
	counts [64 * steps]uint64
	n      uint64
	most   int64
}

const steps = 32

func bucket(v int64) int {
	if v < steps {
		return int(max(v, 0))
	}
	e := bits.Len64(uint64(v)) - 6
	return (e+1)*steps + int(v>>uint(e)) - steps
}

func bottom(i int) int64 {
	if i < steps {
		return int64(i)
	}
	return int64(i%steps+steps) << uint(i/steps-1)
}

func (h *histogram) add(v int64) {
	h.counts[bucket(v)]++
	h.n++
	h.most = max(h.most, v)
}

func (h *histogram) quantile(p float64) float64 { // milliseconds
	want := max(uint64(math.Ceil(p*float64(h.n))), 1)
	var seen uint64
	for i := range h.counts {
		if seen += h.counts[i]; seen >= want {
			return float64(bottom(i)) / 1e6
		}
	}
	return float64(h.most) / 1e6
}

func (h *histogram) figures() result {
	if h.n == 0 {
		return nil
	}
	return result{
		"n": h.n, "p50_ms": h.quantile(.5), "p90_ms": h.quantile(.9), "p99_ms": h.quantile(.99),
		"p999_ms": h.quantile(.999), "max_ms": float64(h.most) / 1e6,
	}
}

var shards [16]struct {
	mu sync.Mutex
	histogram
}

// record counts the time from each stamp until now.
func record(id int, now int64, stamps []int64) {
	if len(stamps) == 0 {
		return
	}
	shard := &shards[id&15]
	shard.mu.Lock()
	for _, t := range stamps {
		shard.add(now - t)
	}
	shard.mu.Unlock()
}

func latencies() result {
	var all histogram
	for i := range shards {
		for k, c := range shards[i].counts {
			all.counts[k] += c
		}
		all.n += shards[i].n
		all.most = max(all.most, shards[i].most)
	}
	return all.figures()
}

// Processes.

type usage struct {
	cpu float64 // seconds
	rss int64   // KiB
}

func pidList(text string) (pids []int) {
	for _, p := range strings.Split(text, ",") {
		pid, err := strconv.Atoi(strings.TrimSuffix(p, "+"))
		if err != nil {
			continue
		}
		pids = append(pids, pid)
		if strings.HasSuffix(p, "+") {
			pids = append(pids, children(pid)...)
		}
	}
	return pids
}

func children(pid int) (pids []int) {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range threads {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, f := range strings.Fields(string(b)) {
			child, _ := strconv.Atoi(f)
			pids = append(append(pids, child), children(child)...)
		}
	}
	return pids
}

// stat returns the fields of /proc/PID/stat from the third on.
func stat(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	text := string(b)
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
}

func zombie(pid int) bool {
	f := stat(pid)
	return len(f) == 0 || f[0] == "Z" || f[0] == "X"
}

func look(pids []int) (u usage) {
	for _, pid := range pids {
		if f := stat(pid); len(f) > 21 {
			user, _ := strconv.ParseFloat(f[11], 64)
			system, _ := strconv.ParseFloat(f[12], 64)
			pages, _ := strconv.ParseInt(f[21], 10, 64)
			u.cpu += (user + system) / 100 // USER_HZ is 100 on every Linux
			u.rss += pages * int64(os.Getpagesize()) / 1024
		}
	}
	return u
}

func ownCPU() float64 {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
}
