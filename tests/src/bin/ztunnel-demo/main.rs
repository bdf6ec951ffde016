//! `ztunnel-demo`: the main job, shown on one machine. Raises two nodes and a bookinfo-shaped application, shows
//! what the mesh does to its traffic, checks every claim, and stays up to play with. `cargo xtask run` starts it.
//!
//! It claims nothing it has not looked at, and leaves nothing behind, however it ends.
#![expect(clippy::print_stdout, reason = "a command-line program")]

mod cast;
mod invitation;
mod look;
mod request;
mod same_node;
mod scenes;
mod stage;
mod traffic;

use std::process::ExitCode;
use std::time::Duration;

use ztunnel_tests::{SOON, becomes_true, end_on_signals, enough};

use crate::cast::Cast;
use crate::stage::Stage;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let once = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--once"] => true,
        _ => {
            println!("usage: ztunnel-demo [--once]");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = end_on_signals() {
        println!("cannot listen for Ctrl-C: {error}");
        return ExitCode::FAILURE;
    }
    let mut stage = Stage::new(scenes::COUNT);
    let mut id = None;
    match cast::raise(&mut stage) {
        Err(error) => stage.broken(&error),
        Ok(cast) => {
            id = Some(cast.mesh.id().to_owned());
            play(&cast, &mut stage, once);
        }
    }
    // The mesh is gone by now: the end of the match dropped it.
    stage.scene("leave nothing behind");
    if let Some(id) = id {
        let traces = look::traces(&id);
        stage.check(
            "no namespace, pin, folder or process is left",
            traces.is_empty(),
            &traces.join(", "),
        );
    }
    stage.end()
}

/// Shows every scene, then invites. A scene that cannot go on ends the show; a failed check does not.
fn play(cast: &Cast, stage: &mut Stage, once: bool) {
    for scene in scenes::ALL {
        if enough() {
            return;
        }
        if let Err(error) = scene(cast, stage) {
            stage.broken(&error);
            look::show_ends_of_logs(&cast.mesh);
            break;
        }
    }
    if !once && !enough() {
        stage.so_far();
        invitation::print(cast);
        while !enough() {
            std::thread::park_timeout(Duration::from_secs(3600));
        }
    }
    println!("\ntaking the mesh down ...");
}

/// Waits for `condition`, unless somebody wants the end.
pub(crate) fn soon(condition: impl Fn() -> bool) -> bool {
    becomes_true(SOON, || enough() || condition()) && !enough()
}
