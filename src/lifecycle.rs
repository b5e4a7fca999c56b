//! What happens in the life of the server: parameters, start, connections,
//! end. `filter` calls it in the order that nbdkit-filter(3) describes.

use std::ffi::{CStr, c_int};
use std::sync::Arc;

use log::{error, info};
use parking_lot::Mutex;

use crate::config::{self, Config};
use crate::connection::Connection;
use crate::connections::Connections;
use crate::control::{Control, Rules};
use crate::gate::{Barrier, Gate, thread_slot};
use crate::latecomers;
use crate::logger;
use crate::nbdkit::{self, Next};
use crate::os::EventFd;
use crate::os::advice::Advised;
use crate::os::exit;
use crate::socket::ControlSocket;

/// The filter's one instance in this process: from `load` to `unload`.
static INSTANCE: Mutex<Option<Instance>> = Mutex::new(None);

#[derive(Default)]
struct Instance {
    /// How often nbdkit loaded us: once for each `--filter` that names us.
    loads: u32,
    config: Config,
    /// From `get_ready` to `after_fork`; then the control thread has it.
    socket: Option<ControlSocket>,
    serving: Option<Serving>,
    /// nbdkit has chosen the parallel thread model.
    is_parallel: bool,
}

/// What exists once the server serves. Dropped in this order.
struct Serving {
    control: Control,
    gate: Arc<Gate>,
    connections: Arc<Connections>,
}

/// The callback failed, and the log says why.
pub struct Failed;

/// Logs `why`, as nbdkit asks of a callback that fails.
fn failed(why: impl std::fmt::Display) -> Failed {
    error!("{why}");
    Failed
}

/// nbdkit has loaded the filter.
pub fn load() {
    logger::start();
    let mut instance = INSTANCE.lock();
    let instance = instance.get_or_insert_default();
    instance.loads = instance.loads.saturating_add(1);
}

/// Nothing of ours may run once this returns. All connections have ended.
pub fn unload() {
    let mut loaded = INSTANCE.lock();
    let Some(mut instance) = loaded.take() else {
        return;
    };
    drop(instance.serving.take());
    drop(instance.socket.take());
    logger::stop();
}

/// Takes a parameter if it is ours; `Ok(false)` if it is for a layer below.
pub fn config(key: &CStr, value: &CStr) -> Result<bool, Failed> {
    with_instance(|instance| instance.config.set(key, value).map_err(failed))
}

/// All parameters are in.
pub fn config_complete() -> Result<(), Failed> {
    with_instance(|instance| {
        if instance.loads > 1 {
            return Err(failed(
                "this filter was given more than once, but a server has only one control \
                 socket: give the filter once",
            ));
        }
        nbdkit::look_for_disconnect();
        instance.config.control().map(|_| ()).map_err(failed)
    })
}

/// The last step before nbdkit opens its own sockets, changes user and goes
/// into the background: whoever started it still sees an error. The process
/// has a single thread.
pub fn get_ready(thread_model: c_int) -> Result<(), Failed> {
    with_instance(|instance| {
        instance.config.check_thread_model(thread_model).map_err(failed)?;
        instance.is_parallel = config::is_parallel(thread_model);
        let path = instance.config.control().map_err(failed)?;
        let socket = ControlSocket::bind(path, instance.config.mode()).map_err(failed)?;
        instance.socket = Some(socket);
        // If a later step fails, nbdkit exits without calling `unload`.
        exit::at_failure(remove_socket);
        Ok(())
    })
}

extern "C" fn remove_socket() {
    // Locked if the exit comes from a callback of ours, which has dealt with it.
    if let Some(Some(instance)) = INSTANCE.try_lock().as_deref_mut() {
        if instance.serving.is_none() {
            instance.socket = None;
        }
    }
}

/// The process is the one that will serve; threads may be started.
pub fn after_fork() -> Result<(), Failed> {
    with_instance(|instance| {
        let serving = serve(instance);
        if serving.is_err() {
            // nbdkit gives up without calling `unload`.
            instance.socket = None;
        }
        instance.serving = Some(serving?);
        Ok(())
    })
}

fn serve(instance: &mut Instance) -> Result<Serving, Failed> {
    let event = EventFd::new().map_err(|e| {
        failed(format_args!("pause-control: cannot create an eventfd: {}", Advised(&e)))
    })?;
    let event = Arc::new(event);
    let signalled = event.clone();
    let gate = Arc::new(Gate::new(Barrier::best(), move || signalled.signal()));
    info!("pauses rely on {}", gate.barrier());
    let connections = Arc::new(Connections::default());
    let rules = Rules {
        flush: instance.config.flush().then(|| connections.clone()),
        timeout: instance.config.timeout(),
        holds: instance.config.hold(),
        status: instance.config.status(),
    };
    let socket = instance.socket.take().ok_or_else(|| failed("there is no control socket"))?;
    let control = Control::start(socket, gate.clone(), event, rules)
        .map_err(|why| failed(format_args!("pause-control: {why}")))?;
    Ok(Serving { control, gate, connections })
}

/// A client has connected, and nothing was said yet.
pub fn preconnect() {
    latecomers::connects();
}

/// A connection is about to be opened: if the calling thread was closing one, that is
/// over.
pub fn opens() {
    thread_slot::leave();
}

/// A client has connected: the handle for its requests, valid until `close`.
pub fn open() -> Result<*const Connection, Failed> {
    with_serving(|serving| serving.connections.open(serving.gate.clone()))
}

/// The connection's requests are about to begin; `next` is where they go.
pub fn prepare(connection: &Connection, next: Next) -> Result<(), Failed> {
    let (flush, is_parallel) =
        with_instance(|instance| Ok((instance.config.flush(), instance.is_parallel)))?;
    // Asked now, since nbdkit remembers the answer and does not fail later.
    if flush && next.can_flush().map_err(|()| Failed)? {
        connection.flushable(next, is_parallel);
    }
    Ok(())
}

/// The connection's requests have ended, and its next layer is about to.
pub fn finalize(connection: &Connection) {
    // Without the instance locked: it may take as long as a flush or a drain.
    connection.finalize(|| {
        let _ = with_serving(|serving| serving.connections.writes_are_lost());
    });
}

/// The client has left; no request with this handle is in progress.
pub fn close(handle: *const Connection) {
    // Without the instance locked, as above.
    if let Ok(connections) = with_serving(|serving| serving.connections.clone()) {
        connections.close(handle);
    }
}

/// All connections have ended, and so does the server: layers below may write as
/// they learn of it. No pause is vouched for from here on.
pub fn cleanup() {
    // First, since what follows lets other threads run.
    latecomers::keep();
    let _ = with_serving(|serving| serving.control.server_ends());
    // Without the instance locked: some of them may be in `open`.
    latecomers::wait_for_them();
}

fn with_instance<R>(act: impl FnOnce(&mut Instance) -> Result<R, Failed>) -> Result<R, Failed> {
    match INSTANCE.lock().as_mut() {
        Some(instance) => act(instance),
        None => {
            nbdkit::error(format_args!("pause: called while not loaded"));
            Err(Failed)
        }
    }
}

fn with_serving<R>(act: impl FnOnce(&mut Serving) -> R) -> Result<R, Failed> {
    with_instance(|instance| match instance.serving.as_mut() {
        Some(serving) => Ok(act(serving)),
        None => Err(failed("a client connected before the filter was ready")),
    })
}
