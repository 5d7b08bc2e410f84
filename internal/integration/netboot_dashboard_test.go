//go:build integration

package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
)

// The dashboard in a real browser: what it does there is the half of it that no
// test in Go sees.

const lostMark = `!document.getElementById("lost").hidden`

func TestDashboard(t *testing.T) {
	browser := newBrowser(t)
	for name, test := range map[string]func(*wall, context.Context){
		"live":        testDashboardLive,
		"keyboard":    testDashboardKeyboard,
		"one host":    testDashboardHost,
		"hostile":     testDashboardHostile,
		"no script":   testDashboardNoScript,
		"lost":        testDashboardLost,
		"crowd":       testDashboardCrowd,
		"widths":      testDashboardWidths,
		"preferences": testDashboardPreferences,
	} {
		t.Run(name, func(t *testing.T) { test(newWall(t, browser), browser) })
	}
}

// Changes appear by themselves, without the page being loaded anew.
func testDashboardLive(w *wall, _ context.Context) {
	for i := 1; i <= 4; i++ {
		w.store.change(fmt.Sprintf("build%02d.example.org", i), stageIs(state.Armed))
	}
	w.open("/")
	w.eval(`window.stayed = "yes"`)
	const tile = `document.querySelector('[data-key="build03.example.org"]')`
	w.is(tile+`.dataset.word`, "armed")
	w.is(`document.title`, "0 of 4 ready · Kiln")
	w.becomes(`document.getElementById("mode").textContent`, "live")
	w.eval(tile + `.querySelector("a").focus()`)

	w.store.change("build03.example.org", stageIs(state.Writing))
	d := w.becomes(tile+`.dataset.word`, "writing")
	w.t.Logf("a change is seen after %v", d.Round(10*time.Millisecond))
	for _, percent := range []int64{10, 55, 99} {
		w.store.change("build03.example.org", func(r *state.Record) { r.Done = percent * 10 })
		w.becomes(tile+`.querySelector(".percent b").textContent`, fmt.Sprint(percent))
		w.is(tile+`.querySelector("progress").value`, fmt.Sprint(percent))
	}
	w.is(`document.title`, "1 installing, 0 of 4 ready · Kiln")

	w.store.change("build04.example.org", func(r *state.Record) {
		stageIs(state.Failed)(r)
		r.FailedAt, r.Error = state.Booted, "disk: 2 disks fit: S3X1, S3X2"
	})
	const first = `document.querySelector(".tile")`
	w.becomes(first+`.dataset.key`, "build04.example.org")
	w.is(first+`.querySelector(".stage").innerText`, "failed (booted)")
	w.is(first+`.querySelector(".error").innerText`, "disk: 2 disks fit: S3X1, S3X2")
	w.is(`document.title`, "1 failed, 1 installing, 0 of 4 ready · Kiln")
	w.is(`document.getElementById("says").textContent`, "build04.example.org: failed (booted)")
	w.is(`document.querySelector("link[rel=icon]").href.includes("/alarm.svg")`, "true")
	w.is(`document.querySelector(".counts .failed b").innerText`, "1")

	// Whoever works with the keyboard stays where they are.
	w.is(`document.activeElement.getAttribute("href")`, "/hosts/build03.example.org")
	w.is(`window.stayed`, "yes")
	w.is(lostMark, "false")

	// Time goes on between changes.
	before := w.eval(tile + `.querySelector("time").textContent`)
	w.eventually("the time goes on", func() bool { return w.eval(tile+`.querySelector("time").textContent`) != before })

}

// The keyboard alone leads to a host.
func testDashboardKeyboard(w *wall, _ context.Context) {
	for i := 1; i <= 4; i++ {
		w.store.change(fmt.Sprintf("build%02d.example.org", i), stageIs(state.Armed))
	}
	w.open("/")
	w.run(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter))
	for range 12 {
		if w.eval(`document.activeElement.closest(".tile") !== null`) == "true" {
			break
		}
		w.run(chromedp.KeyEvent(kb.Tab))
	}
	w.is(`document.activeElement.getAttribute("href")`, "/hosts/build01.example.org")
	w.is(`getComputedStyle(document.activeElement.closest(".tile")).outlineStyle`, "solid")
	w.run(chromedp.KeyEvent(kb.Enter))
	w.becomes(`location.pathname`, "/hosts/build01.example.org")
}

// A host's own page: its console, live, and what it is given.
func testDashboardHost(w *wall, _ context.Context) {
	w.stop()
	w.dash.Given = func(context.Context, string) ([]protocol.SeedFile, error) {
		return []protocol.SeedFile{{Name: "user-data", Data: []byte("#cloud-config\nencrypt: kiln-secret:teigi://alibuild/consul_encrypt\n</pre><script>alert(1)</script>\n")}}, nil
	}
	w.serve(w.addr)
	const host = "build01.example.org"
	w.store.change(host, stageIs(state.Armed))
	w.store.change(host, stageIs(state.Booted))
	w.open("/hosts/" + host)
	w.eval(`window.stayed = "yes"; document.querySelector("details").open = true`)
	w.is(`document.querySelector("details mark").textContent`, "kiln-secret:teigi://alibuild/consul_encrypt")
	w.becomes(`document.getElementById("mode").textContent`, "live")
	for i := range 3 {
		w.store.change(host, func(r *state.Record) {
			stageIs(state.Writing)(r)
			r.Done = int64(i) * 400
			for j := range 40 {
				r.Console = append(r.Console, fmt.Sprintf("line %d", i*40+j))
			}
		})
		w.becomes(`document.querySelector(".console")?.textContent.trim().split("\n").at(-1)`, fmt.Sprintf("line %d", i*40+39))
	}
	// The last line is in sight, until somebody reads further up.
	const fromEnd = `(c => c.scrollHeight - c.scrollTop - c.clientHeight < 2)(document.querySelector(".console"))`
	w.is(`(c => c.scrollHeight > c.clientHeight + 100)(document.querySelector(".console"))`, "true")
	w.is(fromEnd, "true")
	w.eval(`document.querySelector(".console").scrollTop = 0`)
	w.store.change(host, func(r *state.Record) { r.Console = append(r.Console, "the last") })
	w.becomes(`document.querySelector(".console").textContent.endsWith("the last")`, "true")
	w.is(`document.querySelector(".console").scrollTop`, "0")
	w.is(`document.querySelector(".timeline .now b").textContent`, "writing")
	w.is(`document.title`, host+": writing 80 % · Kiln")
	w.is(`document.querySelector("details").open`, "true")
	w.is(`window.stayed`, "yes")
}

// What a machine says of itself is text, whatever it is; and no script but the
// dashboard's would run if it weren't.
func testDashboardHostile(w *wall, _ context.Context) {
	const evil = `</pre><script>window.pwned=1;alert(1)</script><img src=x onerror="window.pwned=1;alert(2)"><a href="javascript:alert(3)">`
	const host = "build01"
	put := func(r *state.Record) {
		stageIs(state.Failed)(r)
		r.FailedAt, r.Error, r.Console, r.Findings = state.Writing, evil, []string{evil, "\x1b[31mred"}, []string{evil}
		r.History = append(r.History, state.Event{Time: time.Now(), Stage: evil, Text: evil})
		r.DiskFound, r.Address, r.Profile = evil, evil, evil
	}
	for _, path := range []string{"/", "/hosts/" + host} {
		// It comes with the page, and into it as a change.
		w.store.change(host, stageIs(state.Armed))
		w.open(path)
		w.becomes(`document.getElementById("mode").textContent`, "live")
		w.store.change(host, put)
		w.becomes(`document.querySelector(".error")?.textContent`, evil)
		w.open(path)
		w.is(`document.querySelector(".error").textContent`, evil)
		w.is(`document.querySelectorAll("#live script, img, [onerror], a[href^=javascript]").length`, "0")
		// The policy, by itself: inline scripts and handlers don't run.
		w.eval(`{ const s = document.createElement("script"); s.textContent = "window.pwned = 1"; document.body.append(s);
			const b = document.createElement("div"); b.innerHTML = '<img src="/static/none.svg" onerror="window.pwned = 1">'; document.body.append(b); 0 }`)
		time.Sleep(300 * time.Millisecond)
		w.is(`typeof window.pwned`, "undefined")
	}
}

// Without JavaScript the page is whole, and reloads itself.
func testDashboardNoScript(w *wall, _ context.Context) {
	w.store.change("build01.example.org", stageIs(state.Writing))
	w.store.change("build02.example.org", stageIs(state.Ready))
	w.run(emulation.SetScriptExecutionDisabled(true))
	w.open("/")
	w.is(`document.querySelector('[data-key="build01.example.org"] .percent').innerText`, "0 %")
	w.is(`document.querySelector(".counts .ready b").innerText`, "1")
	w.is(`document.querySelector(".clock noscript").innerText`, "reloads every 10 s")
	w.store.change("build01.example.org", func(r *state.Record) { r.Done = 700 })
	d := w.becomes(`document.querySelector('[data-key="build01.example.org"] .percent')?.innerText`, "70 %")
	w.t.Logf("it has reloaded after %v", d.Round(time.Second))
	w.run(chromedp.Click(`.counts .ready a`, chromedp.ByQuery), chromedp.WaitReady(`.counts .ready [aria-current]`, chromedp.ByQuery))
	w.is(`document.querySelectorAll(".tile").length`, "1")
	w.run(chromedp.Click(`.tile a`, chromedp.ByQuery), chromedp.WaitReady(`.timeline`, chromedp.ByQuery))
	w.is(`document.querySelector("h1").innerText`, "build02.example.org")
}

// Nobody takes for live what isn't: a mark says so while the server is gone.
func testDashboardLost(w *wall, _ context.Context) {
	w.store.change("build01.example.org", stageIs(state.Writing))
	w.open("/")
	w.eval(`window.stayed = "yes"`)
	w.becomes(`document.getElementById("mode").textContent`, "live")
	w.is(lostMark, "false")
	w.stop()
	gone := w.becomes(lostMark, "true")
	w.is(`getComputedStyle(document.getElementById("lost")).display !== "none"`, "true")
	w.is(`document.querySelector(".tile").dataset.word`, "writing")
	w.store.change("build01.example.org", stageIs(state.Written))
	w.serve(w.addr)
	back := w.becomes(lostMark, "false")
	w.is(`document.querySelector(".tile").dataset.word`, "written")
	w.becomes(`document.getElementById("mode").textContent`, "live")
	w.is(`window.stayed`, "yes")
	w.t.Logf("the mark is there after %v, and gone %v after the server is back", gone.Round(10*time.Millisecond), back.Round(10*time.Millisecond))
}

// A browser too many isn't told of changes; it asks, and isn't lost.
func testDashboardCrowd(w *wall, browser context.Context) {
	w.stop()
	w.dash.MaxStreams = 1
	w.serve(w.addr)
	w.store.change("build01.example.org", stageIs(state.Armed))
	w.open("/")
	w.becomes(`document.getElementById("mode").textContent`, "live")
	w.tab = w.newTab(browser)
	w.open("/")
	w.becomes(`document.getElementById("mode").textContent`, "asks every few seconds")
	w.store.change("build01.example.org", stageIs(state.Written))
	d := w.becomes(`document.querySelector(".tile").dataset.word`, "written")
	w.is(lostMark, "false")
	w.t.Logf("without being told it is seen after %v", d.Round(10*time.Millisecond))
}

// crowdOf fills the store with so many hosts, of all stages.
func crowdOf(m *memory, n int, name string) (failed string) {
	stages := []state.Stage{state.Ready, state.Ready, state.Ready, state.Ready, state.Armed, state.Writing, state.Booted, state.FirstBoot, state.Disarmed, state.Written}
	for i := range n {
		host := fmt.Sprintf(name, i)
		m.change(host, func(r *state.Record) {
			stageIs(stages[i%len(stages)])(r)
			r.Done = int64(i % 1000)
			r.Since = time.Now().Add(-time.Hour)
			if r.Stage == state.Booted {
				r.Place = i
			}
			if i%50 == 0 {
				failed = host
				r.Stage, r.FailedAt = state.Failed, state.Writing
				r.Error = "write: chunk 17 of 2560: " + strings.Repeat("3f2a91c0b7de", 20) + ": the image at the server is damaged, or the network is"
			}
		})
	}
	return failed
}

// No width makes the page scroll sideways, or a tile lose what it says.
func testDashboardWidths(w *wall, _ context.Context) {
	const sideways = `document.documentElement.scrollWidth - document.documentElement.clientWidth`
	// What sticks out of its tile, or is cut off in it.
	const out = `[...document.querySelectorAll(".tile, .chip a, .counts a")].flatMap(t => [...t.querySelectorAll(":scope *:not(progress, use, circle, path)")]
		.filter(e => e.getBoundingClientRect().right > t.getBoundingClientRect().right + 1 || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
		.map(e => t.innerText + " / " + e.outerHTML)).slice(0, 2).join("; ")`
	for _, c := range []struct {
		hosts int
		name  string
	}{
		{1, "build%02d.example.org"},
		{12, "build%02d.example.org"},
		{12, "a-very-long-name-of-a-host-for-the-alissandra-cluster-%04d.with.a.long.domain.example.org"},
		{500, "build%03d.example.org"},
		{1200, "b%d"},
		{60, "worker-in-the-far-hall-%d.example.org"},
	} {
		w.store.mu.Lock()
		w.store.records = map[string]state.Record{}
		w.store.mu.Unlock()
		failed := crowdOf(w.store, c.hosts, c.name)
		for _, path := range []string{"/", "/hosts/" + failed} {
			for _, width := range []int64{320, 360, 768, 1366, 1920, 3840} {
				w.run(chromedp.EmulateViewport(width, width*9/16))
				w.open(path)
				if got := w.eval(sideways); got != "0" {
					w.t.Errorf("%d hosts like %s, %d wide, %s: %s pixels too wide", c.hosts, c.name, width, path, got)
				}
				if got := w.eval(out); got != "" {
					w.t.Errorf("%d hosts like %s, %d wide, %s: cut off: %s", c.hosts, c.name, width, path, got)
				}
			}
		}
	}
	// A dozen hosts are on a wall's screen as a whole.
	w.store.mu.Lock()
	w.store.records = map[string]state.Record{}
	w.store.mu.Unlock()
	crowdOf(w.store, 12, "build%02d.example.org")
	for _, size := range [][2]int64{{1920, 1080}, {3840, 2160}} {
		w.run(chromedp.EmulateViewport(size[0], size[1]))
		w.open("/")
		w.is(`[...document.querySelectorAll(".tile")].every(t => t.getBoundingClientRect().bottom <= innerHeight)`, "true")
	}
}

// Dark or light, and motion, are as the browser's user has them.
func testDashboardPreferences(w *wall, _ context.Context) {
	w.store.change("build01.example.org", stageIs(state.Writing))
	prefer := func(scheme, motion string) {
		w.run(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: motion},
		}))
	}
	const ground = `getComputedStyle(document.body).backgroundColor`
	const moves = `[...document.styleSheets[0].cssRules].some(r => r.conditionText?.includes("reduced-motion") && matchMedia(r.conditionText).matches)`
	prefer("dark", "reduce")
	w.open("/")
	w.is(ground, "rgb(12, 16, 21)")
	w.is(moves, "true")
	prefer("light", "no-preference")
	w.is(ground, "rgb(244, 245, 247)")
	w.is(moves, "false")
}
