//! Child processes that cannot outlive us: each has its own process group, is killed when its handle is dropped,
//! and dies with this process should it be killed. Never waits without a bound.
#![expect(
    unsafe_code,
    reason = "pre_exec: enters the namespace between fork and exec, so that /sys stays as it is"
)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::eventually::{becomes_true, eventually};
use crate::netns::Netns;

type Job = (Command, Sender<std::io::Result<Child>>);

/// Starts `command` from a thread that lives as long as this process: `PR_SET_PDEATHSIG` fires when the *thread*
/// that forked ends, and tests start programs from short-lived threads.
fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in jobs {
                // A caller that is gone drops the child unseen; there is nothing to tell it.
                drop(reply.send(command.spawn()));
            }
        });
        sender
    });
    let (reply, answer) = channel();
    let gone = || std::io::Error::other("the spawner thread is gone");
    spawner.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// Puts `command` into its own process group and, if one is given, into a network namespace.
fn prepare(command: &mut Command, netns: Option<&Netns>) -> Result<()> {
    let fd: Option<OwnedFd> = netns
        .map(|ns| ns.file().as_fd().try_clone_to_owned())
        .transpose()?;
    let enter = move || {
        if let Some(fd) = &fd {
            setns(fd, CloneFlags::CLONE_NEWNET)?;
        }
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    };
    command.process_group(0);
    // SAFETY: `enter` makes two system calls and touches no memory another thread could hold locked.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// True for exit status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Exit code, or 128 + signal as a shell would say.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output of a command that must have succeeded.
    pub fn ok(self) -> Result<String> {
        if self.success() {
            return Ok(self.stdout);
        }
        bail!(
            "`{}` exited with {}: {}{}",
            self.command,
            self.code(),
            self.stderr,
            self.stdout
        )
    }
}

/// Runs a command to its end, for at most `limit` (then it is killed and an error).
pub fn run<S: AsRef<OsStr>>(netns: Option<&Netns>, argv: &[S], limit: Duration) -> Result<Output> {
    run_with_input(netns, argv, "", limit)
}

/// As [`run`], with `input` on standard input.
pub fn run_with_input<S: AsRef<OsStr>>(
    netns: Option<&Netns>,
    argv: &[S],
    input: &str,
    limit: Duration,
) -> Result<Output> {
    let shown = shown(argv);
    let (program, arguments) = argv.split_first().context("an empty command line")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    prepare(&mut command, netns)?;
    let mut child = spawn(command).with_context(|| format!("starting `{shown}`"))?;
    let stdin = child.stdin.take();
    let mut stdout = child.stdout.take().context("no stdout")?;
    let mut stderr = child.stderr.take().context("no stderr")?;
    std::thread::scope(|scope| {
        // A command that does not read its input closes it early; its exit status tells the rest.
        scope
            .spawn(move || stdin.map(|mut pipe| std::io::Write::write_all(&mut pipe, input.as_bytes()).ok()));
        let out = scope.spawn(move || read_lossy(&mut stdout));
        let err = scope.spawn(move || read_lossy(&mut stderr));
        let status = eventually(limit, || child.try_wait().transpose());
        if status.is_none() {
            kill_group(&child, Signal::SIGKILL);
        }
        let status = status.unwrap_or_else(|| child.wait());
        let (stdout, stderr) = (join(out.join()), join(err.join()));
        let status = status.with_context(|| format!("waiting for `{shown}`"))?;
        if status.signal() == Some(libc::SIGKILL) {
            bail!("`{shown}` did not end within {limit:?}: {stderr}{stdout}");
        }
        Ok(Output {
            command: shown,
            status,
            stdout,
            stderr,
        })
    })
}

fn read_lossy(pipe: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    // What arrived before an error is still worth showing.
    drop(pipe.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn join(text: std::thread::Result<String>) -> String {
    text.unwrap_or_default()
}

fn shown<S: AsRef<OsStr>>(argv: &[S]) -> String {
    argv.iter()
        .map(|word| word.as_ref().to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn kill_group(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // ESRCH: it ended by itself.
        let _gone = killpg(Pid::from_raw(pid), signal);
    }
}

/// A program that keeps running; both its outputs go to one file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `argv` in `netns`, appending its output to `output`.
    pub fn start<S: AsRef<OsStr>>(
        name: &str,
        netns: Option<&Netns>,
        argv: &[S],
        env: &[(String, String)],
        output: &Path,
    ) -> Result<Self> {
        let log = File::options().create(true).append(true).open(output)?;
        let (program, arguments) = argv.split_first().context("an empty command line")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        prepare(&mut command, netns)?;
        let child = spawn(command).with_context(|| format!("starting `{}`", shown(argv)))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            output: output.to_owned(),
        })
    }

    /// Process id (also of its group).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the program has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.output)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the program's output holds `text`; an error if it ends first or takes longer than `limit`.
    pub fn await_output(&mut self, text: &str, limit: Duration) -> Result<()> {
        let mut ended = None;
        let seen = becomes_true(limit, || {
            ended = self.ended();
            self.output().contains(text) || ended.is_some()
        });
        if seen && self.output().contains(text) {
            return Ok(());
        }
        Err(anyhow!(
            "{} has not said {text:?} ({ended:?}); it said: {}",
            self.name,
            self.output()
        ))
    }

    /// Exit status if the program has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Exit status once the program ends by itself, `None` if it does not within `limit`.
    pub fn await_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        eventually(limit, || self.ended())
    }

    /// Sends a signal to the program alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Kills the whole group at once and collects it.
    pub fn kill9(&mut self) {
        if self.ended().is_none() {
            kill_group(&self.child, Signal::SIGKILL);
            // Collected so that no zombie keeps its namespaces; it cannot fail for a child of ours.
            drop(self.child.wait());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        // Children it left in its group.
        kill_group(&self.child, Signal::SIGKILL);
    }
}
