//! What others do around a server, as words of `stage.rs`: to the files in its folder,
//! and to its descriptors.

use super::*;

#[derive(Default)]
pub struct Around {
    /// Other processes' sockets and locks.
    theirs: Vec<(PathBuf, OwnedFd)>,
    seen: Option<Look>,
    /// How many descriptors the server may have where nothing is in its way.
    usual: Option<u64>,
}

impl Around {
    /// One word:
    ///
    /// | | |
    /// |---|---|
    /// | `sh:some_words` | a shell in the server's folder does that, with success |
    /// | `exchange:X:Y` | two files there get each other's names, in one step |
    /// | `binds:X` `locks:X` | another process makes a socket there, or locks a folder |
    /// | `lets-go:` | they end |
    /// | `sees:X` `same:X` | what X is; and it is the same, untouched |
    /// | `stat:%a=600` | what stat(1) has of the control socket |
    /// | `spare:N` `spare:all` | the server may open N files more; or as many as before |
    pub fn play(&mut self, server: &Server, word: &str, what: &str) {
        let path = server.path(what);
        match word {
            "sh" => shell(server.dir(), &what.replace('_', " ")),
            "exchange" => {
                let (one, other) = what.split_once(':').expect("two files");
                exchange(&server.path(one), &server.path(other));
            }
            "binds" => {
                let socket = UnixListener::bind(&path).expect("a socket");
                self.theirs.push((path, socket.into()));
            }
            "locks" => {
                let lock = lock(&path).into();
                self.theirs.push((path, lock));
            }
            "lets-go" => self.theirs.drain(..).for_each(|(path, it)| leave_dead(&path, it)),
            "sees" => self.seen = Some(look(&path)),
            "same" => assert!(self.seen == Some(look(&path)), "{what} was touched"),
            "stat" => {
                let (format, value) = what.split_once('=').expect("what it is");
                let control = server.control_path();
                let stat = clients::program("stat", &["-c", format, control.to_str().unwrap()]);
                assert_eq!(stat.stdout.trim(), value, "{format}");
            }
            "spare" => {
                // It may not have all its descriptors before it has that thread.
                server.control_thread();
                let next = next_descriptor(server.pid());
                let count = match what {
                    "all" => self.usual.expect("a limit"),
                    _ => next.saturating_add_signed(what.parse().expect("a number")),
                };
                let before = limit_descriptors(server.pid(), count);
                self.usual.get_or_insert(before);
            }
            _ => panic!("{word}: no such word"),
        }
    }
}

/// A shell in this folder does that, with success.
pub fn shell(folder: &Path, script: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(folder);
    run(shell).succeeded();
}
