package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// posting is the one poster; with more the order of events would be anybody's guess.
type posting struct {
	done    chan struct{}
	ok, bad int
	wall    time.Duration
	took    histogram
	fanOut  histogram // with -post-wait: from POST to the last stream's event
}

func startPosting(streams []*stream) *posting {
	p := &posting{done: make(chan struct{})}
	if *fPost == "" {
		close(p.done)
		return p
	}
	go func() {
		defer close(p.done)
		p.run(int64(*fN - *fStall))
	}()
	return p
}

func (p *posting) run(live int64) {
	client := &http.Client{Timeout: *fTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	t0 := time.Now()
	for i := 1; i <= *fPostN; i++ {
		if *fPostR > 0 {
			time.Sleep(time.Until(t0.Add(time.Duration(float64(i-1) / *fPostR * 1e9))))
		}
		began := time.Now()
		err := p.post(client, i, began)
		p.took.add(int64(time.Since(began)))
		if err != nil {
			p.bad++
			noteError(err)
		} else {
			p.ok++
		}
		if *fPostW && !p.waitForAll(began, int64(i)*live) {
			break
		}
	}
	p.wall = time.Since(t0)
}

// waitForAll waits until every stream has the event, and lets the server be idle a moment.
func (p *posting) waitForAll(began time.Time, want int64) bool {
	for delivered64.Load() < want {
		if time.Since(began) > *fTimeout || endedEarly.Load() > 0 {
			return false
		}
		time.Sleep(200 * time.Microsecond)
	}
	p.fanOut.add(int64(time.Since(began)))
	time.Sleep(2 * time.Millisecond)
	return true
}

func (p *posting) post(client *http.Client, i int, now time.Time) error {
	stamp := "t=" + strconv.FormatInt(now.UnixNano(), 10) + " s=" + strconv.Itoa(i) + " "
	pad := strings.Repeat("x", max(0, *fSize-len(stamp)))
	body := strings.NewReplacer("{stamp}", stamp, "{pad}", pad).Replace(*fBody)
	req, err := http.NewRequest("POST", *fPost, strings.NewReader(body))
	if err != nil {
		return err
	}
	for _, h := range fPostH {
		name, value, _ := strings.Cut(h, ":")
		req.Header.Set(name, strings.TrimSpace(value))
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("POST: status %d", res.StatusCode)
	}
	return nil
}

func (p *posting) figures() result {
	res := result{"ok": p.ok, "bad": p.bad, "wall_s": p.wall.Seconds(), "took": p.took.figures()}
	if *fPostW {
		res["fan_out"] = p.fanOut.figures()
	}
	return res
}
