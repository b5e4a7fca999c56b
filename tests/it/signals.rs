//! Signals that reach the server: SIGPIPE harms nobody, those that end a program end
//! it, and after SIGSTOP and SIGCONT it is as if it had only been slow. What SIGTERM
//! does to a server that runs is in `shutdown.rs`.

use super::*;

#[test]
fn sigpipe_harms_nobody_however_the_server_was_started() {
    for start_with in ["--default-signal=PIPE", "--ignore-signal=PIPE"] {
        let mut stage = Stage::on(Setup::with_disk(1).under(&["env", start_with]));
        stage.play("A:p=P held");
        let server = &stage.server;
        let control = server.control_thread();
        for _ in 0..20 {
            send_signal(server.pid(), libc::SIGPIPE);
            send_signal_to_thread(server.pid(), control, libc::SIGPIPE);
            // Nobody is there for the replies.
            server.controller().send(b"ppppxxxx");
        }
        stage.play("heard still A:r=R flow");
        stage.end();
    }
}

/// tgkill(2), of a thread that is known to be there still.
fn send_signal_to_thread(pid: u32, thread: u32, signal: i32) {
    // SAFETY: tgkill(2) takes three integers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, signal) };
    assert_eq!(sent, 0, "tgkill {pid} {thread}: {}", io::Error::last_os_error());
}

#[test]
fn sighup_sigint_and_sigquit_end_a_paused_server_as_sigterm_does() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        let mut stage = Stage::on(Setup::with_disk(1));
        stage.play("A:p=P held");
        send_signal(stage.server.pid(), signal);
        stage.play("dropped goes A.is-closed");
        assert!(is_zero(&stage.ended().path("disk.img"), 0, 512));
    }
}

dialogues! {
    Setup::with_disk(1).holds() => {
        /// Between two of those the write may go on, or not. Also one that is gone is
        /// heard: nobody else asks for the last pause.
        what_was_sent_to_a_stopped_server_is_answered_in_order_when_it_goes_on:
            "A:p=P held"
            r"stop A:rp?p BCDEF:x+p-\n?p A:= go-on A:=RPHP BCDEF:=X+P-HP"
            r"stop A:rp?p GHIJK:x+p-\n?p A:= go-on A:=RPHP GHIJK:=X+P-HP"
            r"stop A:rp?p LMNOP:x+p-\n?p A:= go-on A:=RPHP LMNOP:=X+P-HP"
            "A:r=R flow stop Q:p Q.closes go-on heard held A:r=R flow";
    }
    Setup::with_disk(1) => {
        /// Or a person sends p, sees nothing, sends r from a second terminal, has R, and
        /// leaves a server that is paused for ever.
        who_came_later_to_a_stopped_server_is_heard_later:
            "stop A:p B:r go-on A:=P B:=R flow   stop C:p D:r go-on C:=P D:=R flow"
            "stop E:p F:r go-on E:=P F:=R flow   stop A:p G:r go-on A:=P G:=R flow"
            "stop H:p H.closes I:r go-on I:=R flow   stop B:p J:r go-on B:=P J:=R flow"
            "stop K:p K.closes L:r go-on L:=R flow   stop C:p M:r go-on C:=P M:=R flow";
    }
    Setup::with_disk(1).holds().limited() => {
        /// What it is sent comes before anything tells it that it is too late.
        a_pause_whose_time_runs_out_while_the_server_is_stopped_is_over_when_it_goes_on:
            "A:+=+ held stop wait:600 A:- go-on A:=X flow"
            "A:+=+ held stop wait:600 A:- go-on A:=X flow told:2:pause-timeout:_";
        a_pause_with_time_left_when_a_stopped_server_goes_on_has_it_and_no_more:
            "A:p=P stop wait:300 go-on expires";
    }
    Setup::obedient() => {
        a_drain_goes_on_when_a_stopped_server_does:
            "reading A:p heard stop remove:slow-read wait:300 go-on A:=P returned held A:r=R flow";
    }
}

#[test]
fn a_stopped_server_that_is_told_to_end_does_so_when_it_goes_on() {
    let mut stage = Stage::on(Setup::with_disk(1));
    stage.play("A:p=P held stop term still go-on dropped");
    assert!(is_zero(&stage.ended().path("disk.img"), 0, 512));
}

#[test]
fn who_dies_while_the_server_is_stopped_is_noticed_when_it_goes_on() {
    const FAR: u64 = 512 * 1024;
    let server = Setup::with_disk(1).holds().start();
    let at_rest = server.threads_at_rest();
    let mut holders = server.controllers(2);
    holders.iter_mut().for_each(Controller::hold);
    let writer = Writer::start(&server, 8, FAR);
    thread::sleep(A_WHILE);
    stop(server.pid());
    writer.kill();
    drop(holders.pop());
    go_on(server.pid());
    eventually("the client's threads are freed", PROMPT, || server.threads() == at_rest);
    holders[0].ask("-", "-");
    // The other hold went with its connection, or this would be held.
    let mut client = Client::connect(&server);
    client.flows(READ);
    client.leave();
    assert!(is_zero(&server.stop().path("disk.img"), FAR, 8 * 512));
}
