//! Getting lines out without making anyone wait.
//!
//! Lines go into one buffer of bounded size; a thread takes the whole buffer and writes it at once. If the
//! output is slower than the log, lines are dropped and counted, and the log itself says how many. It must
//! never hold the lock while it writes.

use std::io::{self, ErrorKind, Write};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{LogFormat, line};

/// Bytes that may wait for a slow output: some twenty thousand access lines.
const MAX_WAITING: usize = 8 << 20;

/// What a buffer may keep of its size once it is written.
const MAX_KEPT: usize = 256 << 10;

/// After a write, lines are let gather for this long. Being woken for each of many costs whoever logs more than the
/// line: of 40 thousand lines a second every one was two system calls.
const GATHER: Duration = Duration::from_millis(5);

/// How long to leave an output alone that takes nothing now.
const RETRY: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    lines: u64,
    /// Lines accepted so far, and lines written (or lost with the output) so far.
    accepted: u64,
    done: u64,
    closed: bool,
}

/// The buffer between those who log and the thread that writes.
#[derive(Default)]
struct Buffer {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    written: Condvar,
    dropped: AtomicU64,
}

/// The end of those who log. When it is dropped, the thread writes what is left and ends.
pub(super) struct LineWriter {
    buffer: Arc<Buffer>,
}

impl LineWriter {
    /// Starts the thread.
    pub(super) fn start(output: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        let buffer = Arc::new(Buffer::default());
        let of_thread = Arc::clone(&buffer);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || of_thread.run(output, format))?;
        Ok(Self { buffer })
    }

    /// Takes one line, its newline included, or drops and counts it. Never waits for the output.
    pub(super) fn push(&self, line: &[u8]) {
        let mut waiting = self.buffer.lock();
        if waiting.bytes.len() + line.len() > MAX_WAITING {
            // Under the lock: the batch that waits is then sure to report it.
            self.buffer.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        waiting.lines += 1;
        waiting.accepted += 1;
        drop(waiting);
        if was_empty {
            self.buffer.filled.notify_one();
        }
    }

    /// Lines dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.buffer.dropped.load(Ordering::Relaxed)
    }

    /// Waits until the lines accepted before this call are out.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut waiting = self.buffer.lock();
        let target = waiting.accepted;
        while waiting.done < target {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            waiting = self
                .buffer
                .written
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.buffer.lock().closed = true;
        self.buffer.filled.notify_one();
    }
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A thread that died while it appended a line leaves at worst half a line.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: takes what is there, writes it, says what was dropped meanwhile.
    fn run(&self, mut output: impl Write, format: LogFormat) {
        let mut batch = Vec::new();
        let mut reported = 0;
        while let Some(lines) = self.take(&mut batch) {
            let dropped = self.dropped.load(Ordering::Relaxed);
            if dropped > reported {
                batch.extend_from_slice(line::dropped(format, dropped - reported).as_bytes());
            }
            match write_all(&mut output, &batch) {
                Ok(()) => reported = dropped,
                Err(_) => {
                    // Nobody reads the log any more; there is nowhere to say so but the counter.
                    self.dropped.fetch_add(lines, Ordering::Relaxed);
                }
            }
            batch.clear();
            batch.shrink_to(MAX_KEPT);
            self.lock().done += lines;
            self.written.notify_all();
            thread::sleep(GATHER);
        }
    }

    /// Waits for lines and swaps them into `batch`, which is empty; returns how many, or `None` when
    /// there will be no more.
    fn take(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let mut waiting = self.lock();
        while waiting.bytes.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut waiting.bytes, batch);
        Some(mem::take(&mut waiting.lines))
    }
}

/// Like [`Write::write_all`], but waits for an output that somebody else made non-blocking.
fn write_all(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An output that takes bytes only while the test lets it.
    struct Gate {
        open: mpsc::Receiver<()>,
        seen: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.open.recv().map_err(|_| ErrorKind::BrokenPipe)?;
            self.seen.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (LineWriter, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let (open, gate) = mpsc::channel();
        let (seen, writes) = mpsc::channel();
        let writer = LineWriter::start(Gate { open: gate, seen }, LogFormat::Text).unwrap();
        (writer, open, writes)
    }

    #[test]
    fn lines_that_pile_up_behind_a_write_go_out_together() {
        let (writer, open, writes) = gated();
        writer.push(b"one\n");
        open.send(()).unwrap();
        assert_eq!(writes.recv().unwrap(), b"one\n");
        writer.push(b"two\n");
        // The thread may already hold the second line; what comes behind it waits as one batch.
        writer.push(b"three\n");
        writer.push(b"four\n");
        let mut rest = Vec::new();
        while rest != b"two\nthree\nfour\n" {
            open.send(()).unwrap();
            rest.extend(writes.recv().unwrap());
        }
        assert!(writer.flush(Duration::from_secs(10)));
    }

    #[test]
    fn a_stuck_output_costs_lines_and_not_time() {
        let (writer, open, writes) = gated();
        let line = vec![b'x'; 1 << 20];
        let started = Instant::now();
        for _ in 0..32 {
            writer.push(&line);
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        let dropped = writer.dropped();
        assert!((16..32).contains(&dropped), "{dropped}");
        assert!(!writer.flush(Duration::from_millis(1)));
        for _ in 0..8 {
            let _ = open.send(());
        }
        assert!(writer.flush(Duration::from_secs(10)));
        let text: Vec<u8> = writes.try_iter().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        let reports = text.lines().filter_map(|line| line.split_once("lines="));
        let said: u64 = reports.map(|(_, lines)| lines.parse::<u64>().unwrap()).sum();
        assert_eq!(said, dropped, "the log says what it lost");
    }

    #[test]
    fn an_output_that_is_gone_counts_as_dropped() {
        let (writer, open, _writes) = gated();
        drop(open);
        writer.push(b"to nobody\n");
        assert!(writer.flush(Duration::from_secs(10)));
        assert_eq!(writer.dropped(), 1);
    }
}
