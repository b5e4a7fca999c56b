//! `pause-flush`: all that was written is stable before a pause is in force, what a
//! former server wrote as well, and nothing is flushed in vain. Where there is no thread
//! to flush with is in `shortages.rs`, values that are refused are in `parameters.rs`.

use super::*;

/// Over a disk, with nbdkit-log-filter in between.
fn logged() -> Setup {
    Setup::with_disk(1).flushes().logged()
}

/// Over a plugin whose flush can be told to be slow and to fail.
fn obedient() -> Setup {
    Setup::obedient().flushes()
}

/// The connections that were flushed so far, in order.
fn flushed(server: &Server) -> Vec<u32> {
    let log = server.logged();
    let lines = log::lines(&log).into_iter();
    lines.filter(|line| line.kind == "Flush" && line.begins).map(|line| line.connection).collect()
}

// What the kernel is asked for: strace.

/// The server's system calls during a dialogue, in the order of their ends: `S` is a
/// successful fdatasync of the disk, `P`, `R` and `X` are replies.
fn expect_calls(setup: Setup, line: &str, expected: &str) {
    let calls = "trace=fdatasync,fsync,sync,syncfs,sync_file_range,msync,write,sendto";
    let setup = setup.under(&["strace", "-f", "-y", "-o", "trace", "-e", calls]);
    let trace = fs::read_to_string(play(setup, line).path("trace")).expect("the trace");
    let mut events = String::new();
    let mut syncing = HashMap::new();
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').expect("a thread");
        let call = call.trim_start();
        if call.contains("sync") && !call.contains("resumed>") {
            assert!(call.starts_with("fdatasync(") && call.contains("/disk.img>"), "{line}");
            syncing.insert(thread, ());
        }
        if call.contains("sync") && !call.contains("<unfinished") {
            assert!(syncing.remove(thread).is_some() && call.ends_with("= 0"), "{line}");
            events.push('S');
        }
        let is_reply = |reply: &char| call.contains(&format!(", \"{reply}\", 1"));
        events.extend(['P', 'R', 'X'].iter().filter(|reply| is_reply(reply)));
    }
    assert_eq!(events, expected.replace(' ', ""), "{line}");
}

#[test]
fn the_disk_is_synced_before_p_is_answered_and_never_in_vain() {
    for (line, calls) in [
        ("write pause write pause write pause", "SPR SPR SPR"),
        // A former server may have crashed and left its writes in a cache: once,
        // nothing is known to be stable.
        ("read pause read pause write pause pause read pause", "SPR PR SPR PR PR"),
        // What a client has flushed itself is not synced again.
        ("write flush pause write flush write pause", "S PR S SPR"),
        // Nor what has FUA, which does not cover what has not.
        ("pause write+fua trim+fua zero+fua pause write write+fua pause", "SPR S S S PR S SPR"),
    ] {
        expect_calls(Setup::with_disk(1).flushes(), line, calls);
    }
}

#[test]
fn without_pause_flush_nothing_is_ever_synced() {
    for setup in [Setup::with_disk(1), Setup::with_disk(1).with("pause-flush=false")] {
        expect_calls(setup, "write pause", "PR");
    }
}

// Which connections are flushed: nbdkit-log-filter.

#[test]
fn a_write_a_trim_and_a_zero_make_a_connection_dirty_and_nothing_else_does() {
    let mut stage = Stage::on(logged());
    stage.play("pause");
    for request in ONE_OF_EACH {
        stage.client().ask(request);
        let before = flushed(&stage.server).len();
        stage.play("pause");
        let is_change = matches!(request, Write(..) | Trim(_) | Zero(_));
        assert_eq!(flushed(&stage.server).len() - before, usize::from(is_change), "{request:?}");
    }
}

#[test]
fn every_connection_is_flushed_once_and_then_each_dirty_one_and_no_other() {
    let server = logged().start();
    let mut clients: Vec<_> = (0..12).map(|_| Client::connect(&server)).collect();
    let mut controller = server.controller();
    controller.pause();
    let mut got = flushed(&server);
    got.sort_unstable();
    // nbdkit counts from 1.
    assert_eq!(got, (1..=12).collect::<Vec<_>>());
    controller.resume();
    for (client, request) in clients.iter_mut().zip([WRITE, Trim(1024), Zero(0), READ].repeat(3)) {
        client.ask(request);
    }
    controller.pause();
    let mut got = flushed(&server).split_off(12);
    got.sort_unstable();
    assert_eq!(got, [1, 2, 3, 5, 6, 7, 9, 10, 11]);
    controller.resume();
    // Once and for all, until they write again.
    clients[4].ask(WRITE);
    controller.pause();
    assert_eq!(flushed(&server)[21..], [5]);
}

#[test]
fn under_load_no_write_is_ever_left_without_a_flush_in_a_pause() {
    const PAUSES: usize = 30;
    let mut random = Random::new();
    let server = Setup::new(&["memory", "16M"]).flushes().logged().start();
    let options = ["--rw=randwrite", "--numjobs=3", "--iodepth=16", "--fsync=64", "--bs=4k"];
    let more = ["--size=16M", "--time_based", "--runtime=300"];
    let mut load = fio(&server, &[&options[..], &more[..]].concat());
    let mut controller = server.controller();
    let mut pauses = Vec::new();
    let mut before = 0;
    while pauses.len() < PAUSES {
        load.runs_until("the load goes on", || server.logged_bytes() > before + 20_000);
        thread::sleep(random.millis(0..5));
        controller.pause();
        before = server.logged_bytes();
        pauses.push(before);
        thread::sleep(random.millis(1..10));
        // A client may connect meanwhile.
        let since = &server.logged()[before as usize..];
        let is_touched = |line: &log::Line| ["Write", "Flush"].contains(&line.kind);
        assert!(!log::lines(since).iter().any(is_touched), "{since}");
        controller.resume();
    }
    load.kill();
    let unflushed = log::unflushed_at(&log::lines(&server.logged()), pauses);
    assert!(unflushed.is_empty(), "{unflushed:?}");
    let flushes = flushed(&server).len();
    assert!(flushes >= PAUSES, "{flushes} flushes: this proves nothing");
}

// A connection that closes.

dialogues! {
    obedient() => {
        the_writes_of_a_connection_that_has_closed_are_stable_in_the_next_pause:
            "write goes is-gone flushed:1 A:p=P";
        a_clean_connection_that_closes_is_not_flushed:
            "write flush goes read goes is-gone A:p=P flushed:1";
    }
}

/// A client that has written leaves while a pause drains.
fn closed_during_a_drain() -> Stage {
    let mut stage = Stage::on(obedient());
    let mut writer = Client::connect(&stage.server);
    writer.ask(WRITE);
    stage.play("reading A:p=");
    drop(writer);
    stage.play("A:= flushed:0");
    stage
}

#[test]
fn a_connection_that_closes_while_a_pause_drains_is_flushed_by_the_pause() {
    // With the one that has read.
    closed_during_a_drain().play("returns A:=P flushed:2 goes wait:300 flushed:2");
}

#[test]
fn a_connection_that_closes_while_a_pause_drains_is_flushed_after_a_resume() {
    closed_during_a_drain().play("B:r=R A:=X flushed:1");
}

/// Plugins that a pause flushes, or does not, or that cannot be flushed.
fn flushing_or_not() -> [Setup; 3] {
    let cannot_flush = || Setup::obedient().with("can_flush=exit 3");
    [Setup::obedient(), Setup::obedient().flushes(), cannot_flush().flushes()]
}

/// The layers below may write as they are closed: one thread waits with that.
#[test]
fn a_client_that_has_written_and_leaves_in_a_pause_frees_its_threads_but_one() {
    let [does_not_flush, _, cannot_flush] = flushing_or_not();
    for setup in [does_not_flush, cannot_flush] {
        let mut stage = Stage::on(setup);
        stage.play("write A:p=P goes");
        eventually("all but one are free", PROMPT, || stage.server.threads() == 3);
        stage.play("wait:300");
        assert_eq!(stage.server.threads(), 3);
        stage.play("A:r=R is-gone");
    }
}

#[test]
fn a_client_whose_writes_are_flushed_and_who_leaves_in_a_pause_frees_all_its_threads() {
    let [does_not_flush, flushes, _] = flushing_or_not();
    play(does_not_flush, "write flush A:p=P goes is-gone A:r=R");
    // By the pause.
    play(flushes, "write A:p=P goes is-gone A:r=R");
}

#[test]
fn a_server_is_told_to_end_in_a_pause_after_writes_and_goes() {
    for setup in flushing_or_not() {
        play(setup, "write A:p=P goes");
    }
}

#[test]
fn connections_come_and_go_during_flushes() {
    let mut stage = Stage::on(obedient());
    // It would be flushed, too, if a pause still found it.
    stage.play("goes is-gone");
    let mut random = Random::new();
    for _ in 0..20 {
        let mut clients: Vec<_> = (0..4).map(|_| Client::connect(&stage.server)).collect();
        for client in &mut clients {
            client.ask(WRITE);
        }
        stage.play("goes A:p");
        for client in clients {
            thread::sleep(random.millis(0..3));
            drop(client);
        }
        stage.play("A:=P");
        let written = stage.server.size("written") as usize / 512;
        assert_eq!(stage.server.content("flushes").lines().count(), 2 * written);
        stage.play("A:r=R is-gone");
    }
}

// A flush that is slow, or fails. The log says `could not be flushed` when it is too
// late for that.

dialogues! {
    obedient() => {
        a_flush_that_fails_gives_the_pause_up_and_the_next_one_works:
            "write make:broken A:p=X read B:p=X read told:2:pause-flush:_"
            "says:the_platters_are_broken says:gave_up_the_pause"
            "remove:broken A:p=P flushed:3 held A:r=R flow";
        a_client_s_own_flush_that_fails_leaves_the_connection_dirty:
            "write make:broken flush-fails remove:broken A:p=P flushed:2";
        /// The second flush began after the writes that the first one may have missed.
        r_is_answered_at_once_during_a_flush_and_p_gets_x:
            "write make:slow A:p await:flushes held B:r=R A:=X flow flushing:0"
            "B:p= flushing:0 remove:slow B:=P flushed:2";
        a_slow_flush_that_was_ended_and_then_fails_is_not_taken_for_success:
            "write make:slow A:p await:flushes B:r=R A:=X make:broken A:p= remove:slow A:=X"
            "remove:broken A:p=P flushed:2";
        /// The next flush goes well, as fsync(2) does after it has told an error once.
        a_flush_that_fails_after_its_pause_was_ended_fails_the_next_pause_once:
            "write make:slow make:broken A:p await:flushes B:r=R A:=X remove:slow flushed:1"
            "remove:broken A:p=X says:pause-flush:_the_flush_of_an_earlier_pause,_which_was_ended,_failed"
            "read A:p=P flushed:2";
        a_last_flush_that_fails_fails_the_next_pause_once_and_the_log_says_why:
            "make:broken write goes is-gone says:the_last_flush_of_a_connection_failed"
            "remove:broken A:p=X says:writes_of_a_closed_connection_could_not_be_flushed"
            "read A:p=P";
        a_pause_that_waits_for_a_last_flush_that_fails_gets_x:
            "write make:slow make:broken goes await:flushes A:p= remove:slow A:=X"
            "says:could_not_be_flushed A:p=P";
        a_flush_that_fails_is_told_to_the_next_one_if_nobody_is_there_to_hear_of_it:
            "write make:slow make:broken A:p await:flushes A.closes heard remove:slow flushed:1"
            "says:gave_up_the_pause remove:broken B:p=X B:p=P flushed:2";
        a_connection_that_closes_while_its_flush_fails_is_not_forgotten:
            "write make:slow make:broken A:p await:flushes goes A:= remove:slow A:=X is-gone"
            "remove:broken A:p=X says:could_not_be_flushed A:p=P";
        /// What a pause found out on its way, and nobody heard, is for the next one.
        a_last_flush_that_failed_is_told_even_if_the_pause_that_finds_it_is_ended:
            "make:broken write goes is-gone remove:broken write make:slow remove:flushes"
            "A:p await:flushes B:r=R A:=X remove:slow A:p=X says:could_not_be_flushed A:p=P";
        requests_are_held_from_p_on_through_the_flush_until_r:
            "write make:slow A:p await:flushes held A:= still remove:slow A:=P still A:r=R flow";
        a_server_that_is_told_to_end_during_a_flush_ends_well:
            "write make:slow A:p await:flushes term goes wait:300";
    }
    obedient().holds() => {
        a_hold_flushes_too_and_the_second_one_finds_it_done:
            "write make:slow A:+ await:flushes A:= remove:slow A:=+ B:+=+ flushed:1";
        /// The holds that were not had are not there.
        a_flush_that_fails_fails_all_who_wait:
            "write make:slow A:p B:+ C:p D:+ await:flushes make:broken remove:slow ABCD:=X read"
            "remove:broken A:pr=PR read";
    }
    obedient().with("can_flush=exit 3") => {
        a_plugin_that_cannot_flush_is_paused_without:
            "write A:p=P held A:r=R flow flushed:0";
    }
}

// Thread models.

/// Those that serialize the requests of all connections.
const STRICT: &[ThreadModel] = ThreadModel::ALL.split_at(2).1;

#[test]
fn a_thread_model_that_serializes_all_connections_is_refused_and_the_message_says_why() {
    let by_a_filter = STRICT.iter().map(|&model| Setup::with_disk(1).thread_model(model));
    // By the plugin's own will.
    let by_itself = Setup::new(&["eval", "get_size=echo 1M", "pread=exit 1", "flush=exit 0"]);
    for setup in by_a_filter.chain([by_itself]) {
        setup.flushes().refused(&["pause-flush", "thread model", "serialize_requests"]);
    }
}

/// A connection that has not written may be negotiating still, and is left alone.
#[test]
fn under_serialize_requests_the_connections_that_have_written_are_flushed() {
    let setup = logged().thread_model(ThreadModel::SerializeRequests);
    let mut stage = Stage::on(setup);
    let _idle = Client::connect(&stage.server);
    stage.play("read A:pr=PR");
    assert!(flushed(&stage.server).is_empty());
    stage.play("write A:p=P held");
    assert_eq!(flushed(&stage.server), [1]);
    stage.play("A:r=R flow");
}

#[test]
fn without_pause_flush_every_thread_model_is_accepted() {
    for model in ThreadModel::ALL {
        play(Setup::with_disk(1).thread_model(model).with("pause-flush=false"), "pause");
    }
}

#[test]
fn nbdkit_s_words_for_true_and_false_are_accepted() {
    for (value, count) in [("1", 1), ("yes", 1), ("On", 1), ("0", 0), ("no", 0), ("OFF", 0)] {
        let parameter = format!("pause-flush={value}");
        let mut stage = Stage::on(Setup::with_disk(1).logged().with(&parameter));
        stage.play("write A:p=P");
        assert_eq!(flushed(&stage.server).len(), count, "{value}");
    }
}
