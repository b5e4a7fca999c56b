//! Every decision of the control side: when to carry out which command, what to
//! reply, and which controller has to make room. It has no socket, no thread and no
//! clock. Its callers say what has arrived, which controller has left and what time it
//! is; it says what to send and when to call again. `control` polls around it. `pause`
//! keeps how far the pause is, and what it depends on.

use std::mem;
use std::time::{Instant, SystemTime};

use log::{debug, info};

use super::controller::{Controller, Id, Name, Peer, Speaks};
use super::history::Cause;
use super::pause::{Outcome, Pause, Progress};
use super::protocol::{Command, Dialogue, Offered, Reply};

/// This many controllers can be connected at once. A heap of forgotten `nc`
/// processes must not lock the operator out, so one more displaces one.
const MOST_CONTROLLERS: usize = 64;

/// One turn carries out this many commands of each controller.
const BUDGET: usize = 4;

/// If a controller leaves this many reply bytes unread, its commands wait, and an `s`
/// that was read before is refused.
const MOST_UNSENT: usize = 4096;

/// See the module's text. Any thread may use it, one at a time.
pub struct Core {
    pause: Pause,
    offered: Offered,
    /// In the order in which they connected.
    controllers: Vec<Controller>,
    last: Id,
    /// Those with a command that waits for its reply.
    waiting: Vec<Id>,
    /// How many turns there were: another controller goes first in each.
    turns: usize,
    /// The time of day in this turn, for `s`.
    time_of_day: SystemTime,
}

impl Core {
    /// Without controllers.
    pub fn new(pause: Pause, offered: Offered) -> Self {
        Core {
            pause,
            offered,
            controllers: Vec::new(),
            last: Id(0),
            waiting: Vec::new(),
            turns: 0,
            time_of_day: SystemTime::UNIX_EPOCH,
        }
    }

    /// A controller has connected. Make room first: see `is_full`.
    pub fn admit(&mut self, peer: Option<Peer>, now: Instant) -> Id {
        let id = Id(self.last.0.saturating_add(1));
        self.last = id;
        let name = Name { id, peer };
        info!("{name} connected");
        self.controllers.push(Controller {
            name,
            dialogue: Dialogue::default(),
            active: now,
            speaks: Speaks::Commands,
            was_heard: false,
            input_ended: false,
            hung_up: false,
            unreachable: false,
        });
        id
    }

    /// Whether one has to go (`to_close`) before another is admitted.
    pub fn is_full(&self) -> bool {
        self.controllers.len() >= MOST_CONTROLLERS
    }

    /// The controller that has to make room: one that has hung up, or else the one that
    /// has been silent for the longest time. One whose commands still wait goes only if
    /// there is no other, one with a hold never. `None` if there is none.
    pub fn to_close(&self) -> Option<Id> {
        let idlest = self
            .controllers
            .iter()
            .filter(|controller| !self.pause.is_holder(controller.name.id))
            .min_by_key(|controller| {
                (!controller.hung_up, !controller.dialogue.is_done(), controller.active)
            });
        idlest.map(|controller| controller.name.id)
    }

    /// The connection of `who` is closed to make room; `why` is for the log.
    pub fn close(&mut self, who: Id, why: &str) {
        if let Ok(place) = self.place(who) {
            let closed = self.controllers.remove(place);
            self.waiting.retain(|&waits| waits != who);
            info!("closed {} to admit another: {why}", closed.name);
        }
    }

    /// Whether to read what `who` sends. If not, `who` waits for its pause, or has
    /// replies to read first.
    pub fn listens_to(&self, who: Id) -> bool {
        self.get(who).is_some_and(|controller| {
            !controller.input_ended
                && controller.dialogue.is_done()
                && controller.dialogue.replies().len() < MOST_UNSENT
        })
    }

    /// `who` has sent `bytes`, for the next `turn`.
    pub fn received(&mut self, who: Id, bytes: &[u8], now: Instant) {
        if let Some(controller) = self.get_mut(who) {
            controller.active = now;
            controller.dialogue.receive(bytes);
        }
    }

    /// `who` will send nothing more. It may wait for its replies.
    pub fn input_ended(&mut self, who: Id) {
        if let Some(controller) = self.get_mut(who) {
            controller.input_ended = true;
        }
    }

    /// `who` has closed its connection in both directions. What it sent before may
    /// still have to be read, and counts.
    pub fn hung_up(&mut self, who: Id) {
        if let Some(controller) = self.get_mut(who) {
            controller.hung_up = true;
        }
    }

    /// Whether `hung_up` is known, and polling for it has no point any more.
    pub fn has_hung_up(&self, who: Id) -> bool {
        self.get(who).is_some_and(|controller| controller.hung_up)
    }

    /// Nothing can be sent to `who` any more; it has hung up, too.
    pub fn unreachable(&mut self, who: Id) {
        if let Some(controller) = self.get_mut(who) {
            controller.hung_up = true;
            controller.unreachable = true;
            controller.dialogue.discard();
        }
    }

    /// What to send to `who`.
    pub fn replies(&self, who: Id) -> &[u8] {
        self.get(who).map_or(&[], |controller| controller.dialogue.replies())
    }

    /// The first `count` bytes of its `replies` have been sent to `who`.
    pub fn sent(&mut self, who: Id, count: usize) {
        let tells = self.get_mut(who).is_some_and(|it| it.dialogue.sent(count));
        if tells {
            self.pause.loss_was_told();
        }
    }

    /// When to call `turn` even if nothing has arrived.
    pub fn deadline(&self) -> Option<Instant> {
        self.pause.deadline()
    }

    /// Whether requests are held.
    pub fn is_closed(&self) -> bool {
        self.pause.is_closed()
    }

    /// Whether commands are left that only need another turn.
    pub fn has_more(&self) -> bool {
        // The answer to one may have unblocked the next.
        self.controllers.iter().any(|it| it.dialogue.has_command())
    }

    /// Moves the pause on and carries out what was received, a few commands of each
    /// controller. Call it when something has arrived, when the gate or the flusher has
    /// signalled, at the `deadline`, and while it `has_more`. Send `replies` after it,
    /// then `part`, and then `wake`.
    pub fn turn(&mut self, now: Instant, time_of_day: SystemTime) {
        self.time_of_day = time_of_day;
        // Before any command: one that comes after the deadline must not find the
        // pause still in force.
        self.progress(now);
        self.turns = self.turns.wrapping_add(1);
        // What others sent before a controller even connected comes before anything it
        // sends, unless it queues behind other commands of theirs: the r of a second nc
        // must not overtake the p of a first.
        let mut order: Vec<(bool, Id)> =
            self.controllers.iter().map(|it| (!it.was_heard, it.name.id)).collect();
        order.sort_by_key(|&(is_new, _)| is_new);
        let known = order.partition_point(|&(is_new, _)| !is_new);
        if let (Some(first), Some(known)) = (self.turns.checked_rem(known), order.get_mut(..known))
        {
            known.rotate_left(first);
        }
        for (_, id) in order {
            self.serve(id, now);
        }
    }

    /// Wakes the requests that were held, if the gate was opened.
    pub fn wake(&mut self) {
        self.pause.wake();
    }

    /// Layers below may write from here on: ends any pause, and none begins again.
    pub fn server_ends(&mut self) {
        self.pause.end_for_good();
        self.settle_waiting(false);
    }

    /// The server is shutting down.
    pub fn shut_down(&mut self, now: Instant) {
        self.pause.shut_down();
        self.progress(now);
    }

    /// Ends the holds of controllers that are gone, and returns those to disconnect:
    /// they have all their replies, and send nothing more.
    pub fn part(&mut self, now: Instant) -> Vec<Id> {
        let mut finished = Vec::new();
        self.controllers.retain_mut(|controller| {
            let name = controller.name;
            if controller.unreachable {
                controller.dialogue.discard();
            }
            // Its replies may still wait to be read, for as long as it likes.
            if controller.hung_up || controller.says_no_more() {
                self.pause.let_go(name, Cause::HangUp, now);
            }
            let is_finished = controller.is_finished();
            if is_finished {
                info!("{name} disconnected");
                finished.push(name.id);
            }
            !is_finished
        });
        if !self.pause.is_wanted() {
            // The last holder vanished while others waited.
            self.settle_waiting(false);
        }
        finished
    }

    fn progress(&mut self, now: Instant) {
        match self.pause.progress(now) {
            Progress::None => {}
            Progress::Paused => self.settle_waiting(true),
            Progress::Ended => self.settle_waiting(false),
        }
    }

    fn settle_waiting(&mut self, well: bool) {
        let tells = !well && self.pause.has_loss_to_tell();
        for id in mem::take(&mut self.waiting) {
            if let Some(controller) = self.get_mut(id) {
                controller.dialogue.settle(well, tells);
            }
        }
    }

    fn serve(&mut self, id: Id, now: Instant) {
        for _ in 0..BUDGET {
            match self.get_mut(id).and_then(|controller| controller.dialogue.next_command()) {
                // One in each turn: it costs more than other commands.
                Some(Command::Status) if self.offered.status => return self.tell(id, now),
                Some(Command::Status) => self.carry_out(id, Command::Unknown, now),
                Some(command) => self.carry_out(id, command, now),
                None => return,
            }
        }
    }

    /// Ids grow, so they are in order.
    fn place(&self, who: Id) -> Result<usize, usize> {
        self.controllers.binary_search_by_key(&who, |controller| controller.name.id)
    }

    fn get(&self, who: Id) -> Option<&Controller> {
        self.controllers.get(self.place(who).ok()?)
    }

    fn get_mut(&mut self, who: Id) -> Option<&mut Controller> {
        let place = self.place(who).ok()?;
        self.controllers.get_mut(place)
    }

    /// `s`. It changes nothing. Once the server ends, no state that it has tells the truth.
    fn tell(&mut self, id: Id, now: Instant) {
        let Ok(place) = self.place(id) else { return };
        let Some(controller) = self.controllers.get_mut(place) else { return };
        debug!("{}: {:?}", controller.name, Command::Status);
        controller.was_heard = true;
        if controller.dialogue.replies().len() >= MOST_UNSENT || self.pause.is_over {
            return controller.dialogue.answer(Reply::No);
        }
        let you = controller.name.peer;
        let line = self.pause.status().to_line(you, now, self.time_of_day);
        controller.dialogue.answer_at_length(&line);
    }

    fn carry_out(&mut self, id: Id, command: Command, now: Instant) {
        let Some(controller) = self.get_mut(id) else { return };
        let name = controller.name;
        debug!("{name}: {command:?}");
        controller.was_heard = true;
        controller.listen_for_another_protocol(command);
        let holds = self.offered.holds;
        let (outcome, hope) = match command {
            Command::Pause => (self.pause.pause(name, now), Reply::Paused),
            Command::Hold if holds => (self.pause.hold(name, now), Reply::Held),
            Command::LetGo if holds => match self.pause.let_go(name, Cause::Release, now) {
                true => (Outcome::Done, Reply::LetGo),
                false => (Outcome::Failed, Reply::No),
            },
            Command::Resume => {
                // A pause that is not in force yet never takes effect.
                self.pause.resume(name, now);
                (Outcome::Done, Reply::Resumed)
            }
            Command::Ask if holds => (Outcome::Done, Reply::HasHolds),
            Command::Unknown | Command::Status | Command::Ask | Command::Hold | Command::LetGo => {
                (Outcome::Failed, Reply::No)
            }
        };
        // Others may have waited for what this one has found or caused: that the
        // pause is in force, or that it has ended.
        if !self.pause.is_wanted() {
            self.settle_waiting(false);
        } else if self.pause.is_in_force() {
            self.settle_waiting(true);
        }
        let tells = self.pause.has_loss_to_tell();
        let Some(controller) = self.get_mut(id) else { return };
        match outcome {
            Outcome::Done => controller.dialogue.answer(hope),
            Outcome::Failed => controller.dialogue.answer(Reply::No),
            Outcome::Refused => controller.dialogue.refuse(tells),
            Outcome::Pending => {
                controller.dialogue.wait_for(hope);
                self.waiting.push(id);
            }
        }
    }
}
