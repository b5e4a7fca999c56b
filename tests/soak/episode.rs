//! One episode: starts the server, lets all actors loose on it, ends it, and
//! looks at what is left.

use std::fmt;
use std::fs;
use std::io::Write;
use std::ops::AddAssign;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::common::random::Random;
use crate::common::{GENEROUS, eventually};
use crate::controllers::{self, Wire, is_noise};
use crate::load::{self, Life};
use crate::log::Log;
use crate::plan::{End, Plan};
use crate::world::{SOON, World};
use pause_model::{Mark, Model, Transcript, describe};

const COUNTED: [&str; 7] = [
    "episodes",
    "sure pauses",
    "commands",
    "requests",
    "clients",
    "of them died",
    "of these in a sure pause",
];

/// What episodes were worth: how many of each of those.
#[derive(Default)]
pub struct Tally([usize; COUNTED.len()]);

/// The first panic of an episode; the others follow from it.
static FIRST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// An error is a report of what was wrong, and where to look.
pub fn run(plan: Plan) -> Result<Tally, String> {
    let server = plan.setup().start();
    let folder = server.dir().to_owned();
    let world = World::new(plan, server);
    *FIRST_PANIC.lock() = None;
    let usual = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        FIRST_PANIC.lock().get_or_insert_with(|| info.to_string());
    }));
    let _ = panic::catch_unwind(AssertUnwindSafe(|| act(&world)));
    let _ = fs::write(folder.join("messages"), world.server.messages());
    let World { plan, server, controllers, lives, clock, terminated, .. } = world;
    let terminated = terminated.into_inner().unwrap_or(Mark::NEVER);
    let _ = panic::catch_unwind(|| server.ended(SOON).well());
    panic::set_hook(usual);

    let (controllers, lives, clock) =
        (controllers.into_inner(), lives.into_inner(), clock.into_inner());
    write_history(&folder, &controllers).expect("the history");
    let result = match FIRST_PANIC.lock().take() {
        Some(panic) => Err(vec![panic]),
        None => judge(&plan, &folder, &controllers, &lives, terminated, |at| {
            let before = clock.partition_point(|mark| mark.at <= at);
            before.checked_sub(1).map_or(0, |last| clock[last].log)
        }),
    };
    if result.is_ok() {
        fs::remove_dir_all(&folder).expect("the episode's folder goes");
    }
    result.map_err(|wrong| {
        let some = wrong.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n");
        let count = wrong.len();
        let folder = folder.display();
        format!("{some}\n{count} in all. See log, messages, history and disk.img in {folder}")
    })
}

/// From the first command to SIGTERM, and until all actors have left.
fn act(world: &World) {
    let plan = &world.plan;
    let mut seeds = Random::with_seed(plan.seed);
    // On this thread, which lives as long as it.
    let fio = plan.fio.map(|depth| load::fio(world, depth));
    thread::scope(|scope| {
        let mut start = |act: fn(&World, &mut Random)| {
            let mut random = Random::with_seed(seeds.seed());
            scope.spawn(move || attempt(world, || act(world, &mut random)))
        };
        let controllers: Vec<_> =
            (0..plan.controllers).map(|_| start(controllers::come_and_go)).collect();
        for _ in 0..plan.clients {
            start(load::come_and_go);
        }
        scope.spawn(|| keep_time(world));
        world.sleep(plan.length);
        attempt(world, || match plan.end {
            End::Terminated => world.terminate(),
            End::Deserted => {
                world.tell_controllers_to_leave();
                for controller in controllers {
                    let _ = controller.join();
                }
                // Without, it has to end by itself.
                if plan.has_pauses() && (plan.timeout.is_none() || seeds.once_in(2)) {
                    resume(world);
                }
                if plan.clients > 0 && plan.timeout.is_none() {
                    pause_and_resume(world, &mut seeds);
                }
                world.tell_all_to_leave();
            }
        });
    });
    attempt(world, || {
        if let Some(fio) = fio {
            let finished = fio.finish(GENEROUS);
            let is_right = finished.status.success() || world.server_goes();
            assert!(is_right, "fio has failed: {finished:#?}");
        }
    });
    if !world.server_goes() {
        world.terminate();
    }
}

/// Does it, and lets everything end where it panics.
fn attempt(world: &World, act: impl FnOnce()) {
    if panic::catch_unwind(AssertUnwindSafe(act)).is_err() && !world.failed() {
        world.fail();
    }
}

fn resume(world: &World) {
    if let Some(mut wire) = Wire::connect(world) {
        wire.send(b"r");
        wire.settle();
        wire.finish();
    }
}

/// Pauses now and again, and lets requests flow each time. Among other controllers
/// nobody would notice that one did not: the next one of them resumes, too.
fn pause_and_resume(world: &World, random: &mut Random) {
    let requests = || Log::new(&world.server.logged()).requests();
    let (close, open) = if world.plan.has_pauses() { (b"p", b"r") } else { (b"+", b"-") };
    let Some(mut wire) = Wire::connect(world) else { return };
    for _ in 0..random.below(1..10) {
        wire.send(close);
        wire.settle();
        let before = requests();
        world.sleep(random.millis(0..50));
        wire.send(open);
        wire.settle();
        let what = format!("requests flow after {}", open[0] as char);
        eventually(&what, SOON, || world.failed() || requests() != before);
    }
    wire.finish();
}

fn keep_time(world: &World) {
    while !world.all_leave() {
        let mark = world.mark();
        world.clock.lock().push(mark);
        thread::sleep(Duration::from_millis(1));
    }
}

fn judge(
    plan: &Plan,
    folder: &Path,
    controllers: &[Transcript],
    lives: &[Life],
    terminated: Mark,
    log_at: impl Fn(Duration) -> u64,
) -> Result<Tally, Vec<String>> {
    let model = Model::new(controllers, plan.rules(), terminated, log_at);
    let pauses = model.pauses();
    let text = fs::read_to_string(folder.join("log")).expect("the log");
    let log = Log::new(&text);
    let disk = fs::read(folder.join("disk.img")).expect("the disk");
    let mut wrong = model.wrong_replies();
    wrong.extend(log.never_idle_in(&model.idle_moments()));
    wrong.extend(log.work_in(&pauses));
    if plan.flush {
        wrong.extend(log.unflushed_in(&pauses));
    }
    wrong.extend(log.unended());
    wrong.extend(log.work_for_the_dead(lives, &pauses));
    wrong.extend(lives.iter().flat_map(|life| life.wrong_on(&disk)));
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let deaths: Vec<Mark> = lives.iter().filter_map(|life| life.died).collect();
    let in_a_pause = |died: &&Mark| pauses.iter().any(|pause| pause.has(**died));
    Ok(Tally([
        1,
        pauses.len(),
        controllers.iter().flat_map(|all| &all.commands).filter(|c| !is_noise(c.byte)).count(),
        log.requests(),
        lives.len(),
        deaths.len(),
        deaths.iter().filter(in_a_pause).count(),
    ]))
}

/// What the controllers have sent, in that order, and what they got.
fn write_history(folder: &Path, controllers: &[Transcript]) -> std::io::Result<()> {
    let mut all: Vec<_> = controllers
        .iter()
        .enumerate()
        .flat_map(|(number, all)| all.commands.iter().map(move |command| (number, command)))
        .collect();
    all.sort_by_key(|(_, command)| command.sent.at);
    let mut file = fs::File::create(folder.join("history"))?;
    for (number, command) in all {
        writeln!(file, "controller {number}: {}", describe(command))?;
    }
    for (number, Transcript { closed, gone, .. }) in controllers.iter().enumerate() {
        writeln!(file, "controller {number}: closed {closed:?}, gone {gone:?}")?;
    }
    Ok(())
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }
}

impl Tally {
    /// Whether all that is to be tested was there.
    pub fn is_worth_something(&self) -> bool {
        !self.0.contains(&0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> =
            self.0.iter().zip(COUNTED).map(|(count, what)| format!("{count} {what}")).collect();
        f.write_str(&all.join(", "))
    }
}
