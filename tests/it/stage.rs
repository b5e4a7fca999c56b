//! Dialogues: a server, a client and controllers that do what a line of words says,
//! so that tests which differ in nothing else are rows of a table. What a row
//! promises is in the name of its test.

use super::*;

/// What is said first of a control socket that can't be put back.
const LOST: &str = "gone from its path";

/// The server looks at the path every two seconds: at least once in this time.
pub const A_LOOK: Duration = Duration::from_millis(2500);

/// A server, one client, and controllers by their letters.
pub struct Stage {
    client: Option<Client>,
    controllers: BTreeMap<char, Controller>,
    /// Writes that are held.
    held: Vec<Ticket>,
    /// A read in the plugin.
    read: Option<Ticket>,
    /// Since when the server may be paused, at the earliest.
    since: Option<Instant>,
    /// Controllers without a letter, who say nothing.
    crowd: Vec<Controller>,
    around: Around,
    pub server: Server,
}

/// Each row is a test: what it promises, and the dialogue that shows it; before them
/// stands the server that it is had with. See `Stage::play`.
macro_rules! dialogues {
    ($($setup:expr => { $($(#[$meta:meta])* $name:ident: $($line:literal)+;)* })*) => {$($(
        $(#[$meta])*
        #[test]
        fn $name() {
            $crate::stage::play($setup, concat!($($line, " "),+));
        }
    )*)*};
}

/// A whole dialogue with a server of its own.
pub fn play(setup: Setup, line: &str) -> Ended {
    let mut stage = Stage::on(setup);
    stage.play(line);
    stage.end()
}

impl Stage {
    pub fn on(setup: Setup) -> Self {
        let server = setup.start();
        Stage {
            client: Some(Client::connect(&server)),
            controllers: BTreeMap::new(),
            held: Vec::new(),
            read: None,
            since: None,
            crowd: Vec::new(),
            around: Around::default(),
            server,
        }
    }

    /// Plays a line of words, one after the other. The client's:
    ///
    /// | | |
    /// |---|---|
    /// | `write` `trim` `zero` `flush` `read` | it has that carried out |
    /// | `write+fua` `trim+fua` `zero+fua` | and it is stable then |
    /// | `flush-fails` | the plugin's error comes back |
    /// | `sends` | it sends a write, and waits for nothing |
    /// | `held` | it sends a write, which is held; and those before still are |
    /// | `still` | they still are |
    /// | `flow` | what was held goes on, and requests flow |
    /// | `expires` | that they do when the pause's `LIMIT` is over, and not before |
    /// | `dropped` | what was held is dropped |
    /// | `reading` | a read is in the plugin, and stays there; see `Setup::obedient` |
    /// | `returns` | it is let go, and comes back |
    /// | `returned` | it has come back |
    /// | `goes` | the client vanishes; another one comes with its next word |
    /// | `is-gone` | and the server has noticed |
    ///
    /// Controllers':
    ///
    /// | | |
    /// |---|---|
    /// | `A:p=P` | controller A, who connects at its first word, sends `p`; `P` comes |
    /// | `AB:+=+` | two of them: both send, then it comes to both |
    /// | `A:p` | A sends, and waits for nothing |
    /// | `A:p=` | A sends, and for a while nothing comes |
    /// | `A:=X` | `X` comes to A |
    /// | `A.closes` `A.half-closes` `A.is-closed` | the connection, by A or by the server |
    /// | `heard` | all that was sent is carried out, or waits |
    /// | `pause` | `A:p=P A:r=R` |
    /// | `crowd` | twice as many as there is room for connect, and say nothing |
    ///
    /// The server's, and its plugin's:
    ///
    /// | | |
    /// |---|---|
    /// | `make:X` `remove:X` `await:X` | a file in the server's folder |
    /// | `flushed:N` `flushing:N` | the plugin has flushed so often; and is at it again |
    /// | `says:some_words` | the log has them, or will |
    /// | `told:N:some_words` `errors:N` | it has them so often; so many errors |
    /// | `lines:N` | and is so long |
    /// | `lost:some_words\|more` | it has a line, or will, on the loss of the control socket |
    /// | `back` | the control socket is at its path, so that controllers can connect |
    /// | `looks` `idle` | the server looks for it; and is not busy |
    /// | `stop` `go-on` `term` | SIGSTOP, SIGCONT, SIGTERM |
    /// | `wait:MS` | |
    ///
    /// In what is sent and said, `_` is a space, and `./` the server's folder. What
    /// others do around the server is in `Around::play`.
    pub fn play(&mut self, line: &str) -> &mut Self {
        println!("playing: {line}");
        for word in line.split_whitespace() {
            // Where a test fails, the last one is what has failed.
            println!("  {word}");
            let is_name = |names: &str| names.chars().all(|name| name.is_ascii_uppercase());
            if let Some((names, line)) = word.split_once(':').filter(|(names, _)| is_name(names)) {
                self.talk(names, line);
            } else if let Some((name, act)) = word.split_once('.').filter(|(name, _)| is_name(name))
            {
                self.leave(name.chars().next().expect("a controller"), act);
            } else if let Some((word, what)) = word.split_once(':') {
                self.serve(word, what);
            } else {
                self.act(word);
            }
        }
        self
    }

    fn act(&mut self, word: &str) {
        match word {
            "heard" => self.server.all_is_heard(),
            "pause" => _ = self.play("A:p=P A:r=R"),
            "crowd" => {
                self.crowd = self.server.controllers(2 * 64);
                // So that it has been too many.
                self.crowd[0].expect_closed();
            }
            "sends" => {
                let ticket = self.client().send(WRITE);
                self.held.push(ticket);
            }
            "held" => {
                self.act("sends");
                self.client().all_read_by_server();
                self.act("still");
            }
            "still" => {
                let held = self.held.clone();
                self.client().expect_held(&held, A_WHILE);
            }
            "flow" => {
                for ticket in std::mem::take(&mut self.held) {
                    self.client().goes_on(ticket);
                }
                self.client().flows(WRITE);
                self.since = None;
            }
            "expires" => {
                let ticket = self.client().send(WRITE);
                let reply = self.client().reply_within(ticket, GENEROUS);
                reply.expect("the pause ends by itself").expect("success");
                let elapsed = self.since.expect("a pause").elapsed();
                assert!(elapsed >= LIMIT, "the pause has ended after {elapsed:?}");
                self.act("flow");
            }
            "dropped" => {
                for ticket in std::mem::take(&mut self.held) {
                    self.client().expect_dropped(ticket, PROMPT);
                }
            }
            "flush-fails" => {
                let flush = self.client().send(Flush);
                assert_eq!(self.client().reply(flush), Err(libc::EIO));
            }
            "reading" => {
                let _connected = self.client();
                let client = self.client.as_mut().expect("a client");
                self.read = Some(client.read_stays_in_plugin(&self.server));
            }
            "returns" => _ = self.play("remove:slow-read returned"),
            "returned" => {
                let read = self.read.take().expect("a read");
                self.client().reply(read).expect("success");
            }
            "goes" => {
                self.held.clear();
                self.client = None;
            }
            "is-gone" => {
                eventually("the client is gone", PROMPT, || self.server.threads() == 2);
            }
            "back" => eventually("the socket is back", GENEROUS, || {
                UnixStream::connect(self.server.control_path()).is_ok()
            }),
            "looks" => thread::sleep(A_LOOK),
            "idle" => self.server.expect_no_busy_loop(|| thread::sleep(A_LOOK)),
            "stop" => stop(self.server.pid()),
            "go-on" => go_on(self.server.pid()),
            "term" => self.server.terminate(),
            _ => match word.strip_suffix("+fua") {
                Some(word) => self.client().ask_fua(request(word)),
                None => _ = self.client().ask(request(word)),
            },
        }
    }

    fn serve(&mut self, word: &str, what: &str) {
        let server = &self.server;
        let number = |what: &str| what.parse::<usize>().expect("a number");
        let flushes = |count| "begin\nend\n".repeat(count);
        match word {
            "make" => server.make(what),
            "remove" => server.remove(what),
            "await" => server.await_file(what),
            "flushed" => eventually(&format!("{what} flushes"), PROMPT, || {
                server.content("flushes") == flushes(number(what))
            }),
            "flushing" => {
                assert_eq!(server.content("flushes"), flushes(number(what)) + "begin\n");
            }
            "says" => server.says(&what.replace('_', " ")),
            "told" => {
                let (count, what) = what.split_once(':').expect("what is told");
                let told = server.messages_count(&what.replace('_', " "));
                assert_eq!(told, number(count), "{}", server.messages());
            }
            "lines" => {
                let messages = server.messages();
                assert_eq!(messages.lines().count(), number(what), "{messages}");
            }
            "lost" => {
                server.says(LOST);
                let what =
                    what.replace('_', " ").replace("./", &format!("{}/", server.dir().display()));
                let parameter =
                    format!("error: pause: pause-control={}: ", server.control_path().display());
                let words: Vec<&str> =
                    [LOST, &parameter].into_iter().chain(what.split('|')).collect();
                expect_line(&server.messages(), &words);
            }
            "errors" => self.serve("told", &format!("{what}:error:")),
            "wait" => thread::sleep(Duration::from_millis(number(what) as u64)),
            _ => self.around.play(server, word, what),
        }
    }

    fn talk(&mut self, names: &str, line: &str) {
        let (sent, replies) = match line.split_once('=') {
            Some((sent, replies)) => (sent, Some(replies)),
            None => (line, None),
        };
        let sent = sent.replace('_', " ").replace(r"\n", "\n").replace(r"\t", "\t");
        if sent.contains(['p', '+']) {
            self.since.get_or_insert_with(Instant::now);
        }
        for name in names.chars() {
            self.controller(name).send(sent.as_bytes());
        }
        for name in names.chars() {
            match replies {
                Some("") => self.controller(name).expect_silence(A_WHILE),
                Some(replies) => self.controller(name).expect(replies),
                None => {}
            }
        }
        if sent == "r" {
            self.since = None;
        }
    }

    fn leave(&mut self, name: char, act: &str) {
        match act {
            "closes" => drop(self.controllers.remove(&name)),
            "half-closes" => {
                self.controller(name).stream().shutdown(Shutdown::Write).expect("shutdown");
            }
            "is-closed" => self.controller(name).expect_closed(),
            _ => panic!("{act}: no such word"),
        }
    }

    pub fn client(&mut self) -> &mut Client {
        self.client.get_or_insert_with(|| Client::connect(&self.server))
    }

    /// Controller `name`, who connects if that is its first word.
    pub fn controller(&mut self, name: char) -> &mut Controller {
        self.controllers.entry(name).or_insert_with(|| self.server.controller())
    }

    /// The plugin is let go, the client leaves, and the server ends well when it is
    /// told to, whatever it is in the middle of.
    pub fn end(self) -> Ended {
        for file in ["slow-read", "slow", "broken", "closed"] {
            let _ = std::fs::remove_file(self.server.path(file));
        }
        self.server.terminate();
        self.ended()
    }

    /// The client leaves, and the server ends well by itself.
    pub fn ended(self) -> Ended {
        drop(self.client);
        self.server.ended(PROMPT).well()
    }
}

fn request(word: &str) -> Request {
    match word {
        "read" => READ,
        "write" => Write(512, 0xaa),
        "flush" => Flush,
        "trim" => Trim(1024),
        "zero" => Zero(1536),
        _ => panic!("{word}: no such word"),
    }
}

/// A word that is never wrong would prove nothing.
#[test]
fn a_dialogue_that_does_not_happen_is_noticed() {
    let lines = [
        "held",
        "A:p=P flow",
        "expires",
        "A:r=P",
        "A:+-=+X",
        "A:p=",
        "sends dropped",
        "flush-fails",
        "flushed:1",
        "flushing:0",
        "told:1:some_words",
        "errors:1",
        "lines:1",
        "sh:false",
        "sees:control sh:touch_-d_@1_control same:control",
        "stat:%a=601",
        "no-such-word",
        "no-such:word",
    ];
    together(lines, |line| {
        let played = thread::spawn(move || play(Setup::obedient().holds(), line)).join();
        assert!(played.is_err(), "{line}");
    });
}
