//! Ctrl-C for a program that has raised a mesh: the signal only raises a flag, so that the mesh is always taken down
//! in order. It must never end the program by itself.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// Set once somebody wants the program to end.
static ENOUGH: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C was pressed, or the terminal is gone.
#[must_use]
pub fn enough() -> bool {
    ENOUGH.load(Ordering::Relaxed)
}

/// From here on SIGINT, SIGTERM and SIGHUP only make [`enough`] true and unpark the calling thread. They are handled,
/// not blocked: programs started later have them as usual.
pub fn end_on_signals() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let entered = runtime.enter();
    let (mut interrupt, mut terminate, mut hangup) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    );
    drop(entered);
    let main = std::thread::current();
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                ENOUGH.store(true, Ordering::Relaxed);
                main.unpark();
            }
        });
    });
    Ok(())
}
