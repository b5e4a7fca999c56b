//! `pause-status`: `s` tells the state, at once and whatever the server is in the middle
//! of. What is told is tested member by member in the core's own tests; here it is told
//! by a real server.

use serde_json::{Value, json};

use super::*;

dialogues! {
    Setup::in_memory() => {
        without_pause_status_s_is_answered_x: "A:s=X A:ps=PX held A:rs=RX flow";
    }
    Setup::in_memory().with("pause-status=false").holds() => {
        with_pause_status_false_it_is_so_too: "A:+s=+X held A:-s=-X flow";
    }
}

/// It can be told to be stuck in a drain and in a flush.
fn obedient() -> Stage {
    Stage::on(Setup::obedient().flushes().holds().tells())
}

#[test]
fn each_state_is_told_at_once_though_a_drain_and_a_flush_are_stuck() {
    let mut stage = obedient();
    let mut lines = String::new();
    // One who is connected all the time, and one who comes for it.
    let mut tell = |stage: &mut Stage, line, state: &str, in_flight: u32| {
        let told = stage.play(line).server.status();
        assert_eq!((&told["state"], &told["in_flight"]), (&json!(state), &json!(in_flight)));
        stage.controller('S').send(b"s");
        lines.push_str(&stage.controller('S').line());
    };
    tell(&mut stage, "write", "running", 0);
    tell(&mut stage, "reading A:ps B:+s heard", "draining", 1);
    tell(&mut stage, "make:slow returns await:flushes", "flushing", 0);
    // What is behind a p waits for it, to tell what came of it.
    tell(&mut stage, "AB:= remove:slow A:=P B:=+", "paused", 0);
    for name in ['A', 'B'] {
        lines.push_str(&stage.controller(name).line());
    }
    // Read by another program.
    let script = "import json, sys
for line in sys.stdin.buffer: print(json.loads(line)['state'])";
    let mut python = Command::new(PYTHON);
    python.args(["-c", script]);
    let read = process::run_with_input(python, lines.as_bytes()).succeeded().stdout;
    assert_eq!(read, "running\ndraining\nflushing\npaused\npaused\npaused\n");
    stage.play("A:r=R flow");
    stage.end();
}

#[test]
fn processes_and_users_are_told_of_a_pause_of_holds_and_of_who_asks() {
    let server = Setup::in_memory().holds().tells().start();
    // SAFETY: takes nothing and cannot fail.
    let uid = unsafe { libc::geteuid() };
    let expect = |told: &Value, pid: u32| {
        assert_eq!((&told["pid"], &told["uid"]), (&json!(pid), &json!(uid)));
    };
    let all = [server.nc(b"p"), server.nc(b"+"), server.nc(b"+")];
    let pids = [0, 1, 2].map(|number: usize| all[number].pid());
    let told = server.status();
    expect(&told["paused_by"], pids[0]);
    assert_eq!(told["holds"].as_array().unwrap().len(), 2);
    expect(&told["holds"][0], pids[1]);
    expect(&told["holds"][1], pids[2]);
    expect(&told["you"], std::process::id());
    // Its hold ends, the other's pause does not.
    let [pauses, holds, _stays] = all;
    [pauses, holds].into_iter().for_each(Process::kill);
    eventually("one hold is left", PROMPT, || server.status()["holds"][0]["pid"] == pids[2]);
    expect(&server.status()["paused_by"], pids[0]);
    let resumes = server.nc(b"r");
    let told = server.status();
    expect(&told["ended"][0], resumes.pid());
    assert_eq!((&told["paused_by"], &told["holds"]), (&Value::Null, &json!([])));
    server.stop();
}

#[test]
fn how_pauses_ended_is_told_the_last_one_first() {
    let mut stage = Stage::on(Setup::in_memory().holds().limited().tells());
    stage.play("A:p=P");
    let left = stage.server.status()["timeout_left"].as_f64().unwrap();
    assert!(left <= LIMIT.as_secs_f64(), "{left}");
    stage.play("A:r=R A:+=+ A.closes flow B:+-=+- B:p=P expires");
    let told = stage.server.status();
    let ended = told["ended"].as_array().unwrap();
    let by: Vec<_> = ended.iter().map(|it| it["by"].as_str().unwrap()).collect();
    assert_eq!(by, ["pause-timeout", "-", "hang-up", "r"]);
    assert!(ended[0]["length"].as_f64().unwrap() >= LIMIT.as_secs_f64(), "{told}");
    stage.end();
}

#[test]
fn what_is_held_is_counted_and_the_age_of_the_oldest_is_told() {
    let mut stage = Stage::on(Setup::in_memory().tells());
    let held = |stage: &Stage| {
        let told = stage.server.status();
        (told["held"].as_u64().unwrap(), told["oldest_held"].as_f64())
    };
    assert_eq!(held(&stage), (0, None));
    // Each of them is held for a while before the next one comes.
    let (count, oldest) = held(stage.play("A:p=P held held"));
    assert_eq!(count, 2);
    assert!(oldest.is_some_and(|age| age >= 2.0 * A_WHILE.as_secs_f64()), "{oldest:?}");
    let mut other = Client::connect(&stage.server);
    let begins = Instant::now();
    let ticket = other.held(WRITE);
    assert_eq!(held(&stage).0, 3);
    // Those who go are not counted any more.
    stage.play("goes");
    eventually("one is left", PROMPT, || held(&stage).0 == 1);
    let younger = held(&stage).1.unwrap();
    assert!(younger <= begins.elapsed().as_secs_f64(), "{younger}");
    stage.play("A:r=R");
    other.goes_on(ticket);
    other.leave();
    assert_eq!(held(&stage), (0, None));
    assert_eq!(stage.server.status()["ended"][0]["held"], 1);
    stage.end();
}

#[test]
fn who_asks_and_reads_nothing_takes_little_memory_and_keeps_nobody_waiting() {
    let server = Setup::in_memory().holds().tells().start();
    let mut holders = server.controllers(3);
    holders.iter_mut().for_each(Controller::hold);
    let mut deaf = server.controllers(56);
    server.all_is_heard();
    let before = resident_kib(server.pid());
    for controller in &mut deaf {
        let stream = controller.stream();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[b's'; 4096]).is_ok() {}
    }
    // Each takes a turn, in which the others are told once: in all of these together, all
    // that can be read of them.
    let mut controller = server.controller();
    for _ in 0..700 {
        controller.send(b"s");
        assert!(controller.line().contains("paused"));
    }
    let after = resident_kib(server.pid());
    assert!(after < before + 3 * 1024, "{before} KiB before, {after} KiB after");
    server.controller().resume();
    Client::connect(&server).ask(WRITE);
    server.stop();
}
