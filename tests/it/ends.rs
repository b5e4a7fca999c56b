//! What a plugin, or a filter below, writes when a connection or the server ends. It
//! does not happen in a pause that is vouched for.

use super::*;

/// What is written is kept back, and comes to the file `written` with this call of the
/// plugin, which begins with the file `begun` and waits while there is one `slow`.
fn writes_back_in(call: &str) -> Setup {
    let write_back = "[ -s kept ] || exit 0; touch begun; \
                      while [ -e slow ]; do sleep 0.02; done; cat kept >>written; rm kept";
    Setup::new(&["eval", "get_size=echo 1M", "thread_model=echo parallel"])
        .parameters(&["can_write=exit 0", "can_flush=exit 0", "flush=exit 0"])
        .parameters(&["pread=head -c $3 /dev/zero", "pwrite=cat >>kept"])
        .with(&format!("{call}={write_back}"))
}

/// The same, in Python: nbdkit-eval-plugin has no `cleanup` before 1.34.
const CLEANUP: &str = "
kept = b''

def pwrite(h, buf, offset, flags):
    global kept
    kept += buf

def cleanup():
    if kept:
        pathlib.Path('begun').touch()
        while os.path.exists('slow'): time.sleep(0.02)
        pathlib.Path('written').write_bytes(kept)
";

fn writes_back_at_the_end(call: &str) -> Setup {
    match call {
        "cleanup" => plugins::in_python(CLEANUP),
        call => writes_back_in(call),
    }
}

fn comes_to(stage: &Stage, size: u64) {
    eventually("it is written", PROMPT, || stage.server.size("written") == size);
}

#[test]
fn a_close_that_may_write_waits_for_the_end_of_the_pause() {
    for (pause, resume) in [("A:p=P", "A:r=R"), ("A:+=+", "A:-=-")] {
        let mut stage = Stage::on(writes_back_in("close").holds());
        stage.play("write").play(pause).play("goes wait:500");
        assert_eq!(stage.server.size("written"), 0, "{pause}");
        stage.play(resume);
        comes_to(&stage, 512);
        stage.play("is-gone");
        stage.end();
    }
}

#[test]
fn a_pause_waits_for_a_close_that_may_write() {
    let mut stage = Stage::on(writes_back_in("close"));
    // It had begun before the pause was asked for, or was let in by an end of one.
    for (before, size) in [("goes await:begun", 512), ("A:p=P goes A:r=R await:begun", 1024)] {
        stage.play("make:slow write").play(before).play("A:p= remove:slow A:=P");
        assert_eq!(stage.server.size("written"), size, "{before}");
        stage.play("wait:300");
        assert_eq!(stage.server.size("written"), size, "{before}");
        stage.play("A:r=R is-gone remove:begun");
    }
    stage.end();
}

/// nbdkit-retry-filter closes a connection and opens it anew, on one thread.
#[test]
fn a_close_is_over_where_the_reopening_of_the_layers_below_fails() {
    let setup = Setup::new(&["eval", "get_size=echo 1M", "thread_model=echo parallel"])
        .parameters(&["open=[ ! -e down ]", "can_write=exit 0", "pread=head -c $3 /dev/zero"])
        .with("pwrite=cat >/dev/null; [ ! -e broken ]")
        .above("retry", &["retries=1", "retry-delay=1"]);
    let mut stage = Stage::on(setup);
    stage.play("write make:down make:broken");
    let failed = stage.client().send(WRITE);
    stage.client().reply(failed).unwrap_err();
    stage.play("A:p=P A:r=R remove:down remove:broken write A:pr=PR").client();
    stage.end();
}

#[test]
fn a_close_that_waits_keeps_no_server_from_ending() {
    for pause in ["A:p=P", "A:+=+"] {
        let mut stage = Stage::on(writes_back_in("close").holds());
        stage.play("write").play(pause).play("goes wait:100");
        let ended = stage.end();
        assert_eq!(fs::metadata(ended.path("written")).unwrap().len(), 512);
        expect_line(&ended.process.stderr, &["error: pause: ", "ended the pause", "discard"]);
    }
}

/// LIMITS in the manual: nbdkit keeps its lock while the connection is closed.
#[test]
fn one_that_leaves_changes_in_a_pause_keeps_others_out_where_nbdkit_has_one_lock_for_all() {
    together(ThreadModel::ALL, |model| {
        let one_lock =
            matches!(model, ThreadModel::SerializeAllRequests | ThreadModel::SerializeConnections);
        for unflushed in [true, false] {
            let server = Setup::with_disk(1).thread_model(model).start();
            let mut client = Client::connect(&server);
            client.ask(WRITE);
            if !unflushed {
                client.ask(Flush);
            }
            let mut controller = server.controller();
            controller.pause();
            client.leave();
            let waits = one_lock && unflushed;
            if waits {
                // By then nbdkit closes the connection.
                thread::sleep(A_WHILE);
            }
            let limit = if waits { A_WHILE } else { GENEROUS };
            let next = Client::connect_within(&server, limit);
            assert_eq!(next.is_none(), waits, "{model:?}, unflushed: {unflushed}");
            drop(next);
            controller.resume();
            Client::connect(&server).ask(READ);
            server.stop();
        }
    });
}

/// nbdkit has `cleanup` from 1.28 on, and calls it before `unload`.
#[test]
fn when_the_server_ends_nobody_has_a_pause_any_more_before_the_plugin_can_write() {
    for call in ["cleanup", "unload"] {
        for (pause, lost) in [("A:p=P", "A:p=X"), ("A:+=+", "A:-=X")] {
            let mut stage = Stage::on(writes_back_at_the_end(call).holds());
            stage.play("write goes is-gone make:slow").play(pause).play("term await:begun");
            assert_eq!(stage.server.size("written"), 0);
            // The control thread has gone by then.
            if call == "cleanup" {
                stage.play(lost).play("A:r=R A:p=X");
            }
            stage.play("says:discard_any_snapshot_being_taken_now remove:slow");
            let ended = stage.ended();
            assert_eq!(fs::metadata(ended.path("written")).unwrap().len(), 512);
        }
    }
}

/// `nbdkit-pause run`, in the server's folder.
fn under_a_hold(stage: &Stage, script: &str) -> Process {
    let mut helper = Command::new(filter::helper());
    helper.current_dir(stage.server.dir()).args(["run", "control", "--", "sh", "-c", script]);
    Process::start(helper)
}

#[test]
fn a_copy_that_a_closing_connection_or_an_ending_server_has_torn_is_not_said_to_be_good() {
    for call in ["cleanup", "unload"] {
        let mut stage = Stage::on(writes_back_at_the_end(call).holds());
        stage.play("write goes is-gone");
        let script = "kill $(cat pid); until [ -s written ]; do sleep 0.02; done";
        let helper = under_a_hold(&stage, script).finish(GENEROUS);
        assert_eq!(helper.status.code(), Some(124), "{call}");
        stage.ended();
    }
    // A client that leaves changes nothing before the end of the run.
    let mut stage = Stage::on(writes_back_in("close").holds());
    stage.play("write");
    let script =
        "touch paused; while [ -e client ]; do sleep 0.02; done; sleep 0.3; ! [ -e written ]";
    stage.play("make:client");
    let helper = under_a_hold(&stage, script);
    stage.play("await:paused goes remove:client");
    assert_eq!(helper.finish(GENEROUS).status.code(), Some(0));
    comes_to(&stage, 512);
    stage.end();
}

/// nbdkit-ext2-filter writes what it knows of the file system as it is closed.
#[test]
fn a_file_system_below_does_not_change_in_a_pause_when_its_client_leaves() {
    let setup = Setup::new(&["file", "disk.img"]).below("ext2", &["ext2file=/file"]).holds();
    let mut stage = Stage::on(never_harmed::in_a_file_system(setup));
    let image = |stage: &Stage| fs::read(stage.server.path("disk.img")).unwrap();
    for block in 0..20 {
        stage.client().ask(Write(50_000 * block, 7));
    }
    stage.play("A:+=+");
    let before = image(&stage);
    stage.play("goes wait:500");
    assert!(image(&stage) == before, "the image has changed in an unbroken hold");
    stage.play("A:-=- is-gone");
    assert!(image(&stage) != before, "this proves nothing");
    never_harmed::expect_whole(&stage.end());
}
