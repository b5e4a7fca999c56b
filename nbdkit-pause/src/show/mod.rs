//! What `status` does: asks all servers for their state at once, and shows what they
//! tell, once or again and again.
//!
//! | module | what lives there |
//! |---|---|
//! | [`ask`] | asks one server |
//! | [`state`] | what it tells |
//! | [`program`] | the program behind a process id |
//! | [`table`] | all that for a person |
//! | [`json`] | all that for a program |

mod ask;
mod json;
mod program;
mod state;
mod table;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;

use crate::args::StatusOptions;
use crate::error::Error;
use crate::signals::Signals;
use crate::status;
use crate::trouble::Trouble;
use ask::{Answer, Filter, Inquiry};

/// With `--watch`, this long from one picture to the next.
const REDRAW: Duration = Duration::from_secs(1);

/// How long to wait before polling again, if that fails.
const RETRY: Duration = Duration::from_millis(10);

/// One server, and what is known of it.
struct Server {
    socket: PathBuf,
    /// The filter of one that does not tell its state.
    filter: Option<Filter>,
    inquiry: Option<(Inquiry, Instant)>,
    outcome: Option<Result<Answer, Trouble>>,
}

/// Shows the state of all servers. Returns the exit status.
pub fn status(options: StatusOptions) -> Result<u8, Error> {
    let StatusOptions { timeout, json, watch, sockets } = options;
    // They may end the program, even if they were blocked when it started: there is
    // nothing to undo.
    let _signals = Signals::new(&[]).map_err(Error::Signals)?;
    if watch && !io::stdout().is_terminal() {
        return Err(Error::NoTerminal);
    }
    let server = |socket| Server { socket, filter: None, inquiry: None, outcome: None };
    let mut servers: Vec<Server> = sockets.into_iter().map(server).collect();
    loop {
        let start = Instant::now();
        servers.iter_mut().for_each(|server| server.begin(start));
        let limit = match (watch, timeout) {
            (true, _) => Some(REDRAW),
            (false, Duration::ZERO) => None,
            (false, timeout) => Some(timeout),
        };
        ask_all(&mut servers, limit.and_then(|limit| start.checked_add(limit)));
        servers.iter_mut().for_each(|server| server.give_up(timeout));
        let text = match json {
            true => json::lines(&servers),
            false => table::draw(&servers),
        };
        let text = if watch { picture(&text) } else { text };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Output)?;
        if !watch {
            return Ok(exit_status(&servers));
        }
        thread::sleep(REDRAW.saturating_sub(start.elapsed()));
    }
}

/// 0 only if all flow, for sure.
fn exit_status(servers: &[Server]) -> u8 {
    let state = |server: &Server| match &server.outcome {
        Some(Ok(Answer::Told(_, state))) => Some(state.state.flows()),
        _ => None,
    };
    let flows: Option<Vec<bool>> = servers.iter().map(state).collect();
    match flows {
        None => status::FAILED,
        Some(flows) if flows.contains(&false) => status::PAUSED,
        Some(_) => status::SUCCESS,
    }
}

/// Steps all inquiries until they are over, or until `end`.
fn ask_all(servers: &mut [Server], end: Option<Instant>) {
    loop {
        servers.iter_mut().for_each(Server::go_on);
        let inquiries = || servers.iter().filter_map(|it| it.inquiry.as_ref().map(|(it, _)| it));
        let now = Instant::now();
        if inquiries().next().is_none() || end.is_some_and(|end| end <= now) {
            return;
        }
        let looks = inquiries().filter_map(|it| it.look_again(now)).chain(end).min();
        let left = looks.map(|then| then.saturating_duration_since(now));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let links = inquiries().flat_map(Inquiry::links);
        let mut fds: Vec<_> = links.map(|link| PollFd::new(link, PollFlags::IN)).collect();
        if !matches!(poll(&mut fds, left.as_ref()), Ok(_) | Err(Errno::INTR)) {
            // The system may be out of memory.
            thread::sleep(RETRY);
        }
    }
}

impl Server {
    /// Asks it anew, unless it still has to answer.
    fn begin(&mut self, now: Instant) {
        let (socket, filter) = (&self.socket, self.filter);
        self.inquiry.get_or_insert_with(|| (Inquiry::new(socket.clone(), filter), now));
    }

    fn go_on(&mut self) {
        let Some((inquiry, _)) = &mut self.inquiry else { return };
        let Some(outcome) = inquiry.step(Instant::now()).transpose() else { return };
        if let Ok(Answer::Untold(filter)) = outcome {
            self.filter = Some(filter);
        }
        (self.inquiry, self.outcome) = (None, Some(outcome));
    }

    /// It has had this long to answer, unless that is zero.
    fn give_up(&mut self, timeout: Duration) {
        let asked = self.inquiry.as_ref().map(|(_, asked)| asked);
        if !timeout.is_zero() && asked.is_some_and(|asked| asked.elapsed() >= timeout) {
            (self.inquiry, self.outcome) = (None, Some(Err(Trouble::Silent(timeout))));
        }
    }
}

/// The text in place of what the terminal shows, as much of it as there is room for.
fn picture(text: &str) -> String {
    const HOME: &str = "\x1b[H";
    const CLEAR_LINE: &str = "\x1b[K";
    const CLEAR_BELOW: &str = "\x1b[J";
    let size = tcgetwinsize(io::stdout()).ok().map(|size| (size.ws_row, size.ws_col));
    // A terminal that does not know its size says zero.
    let room = |size: u16| if size == 0 { usize::MAX } else { usize::from(size) };
    let (rows, columns) = size.map_or((usize::MAX, usize::MAX), |(r, c)| (room(r), room(c)));
    let lines: Vec<String> = text
        .lines()
        .take(rows)
        .map(|line| line.chars().take(columns).collect::<String>() + CLEAR_LINE)
        .collect();
    // Without a newline at the end: in the last row, it would scroll.
    format!("{HOME}{}{CLEAR_BELOW}", lines.join("\r\n"))
}
