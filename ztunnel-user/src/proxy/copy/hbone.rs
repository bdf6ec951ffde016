//! A stream in a tunnel as an end of a relay.

use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::Loss;
use super::carry::Carry;
use super::side::{Gone, PullGone, SideIo};
use crate::hbone::{HboneStream, PullError, Pulled, StreamEnd};

/// Most bytes gathered from frames that have arrived before they are written on together.
const GATHER: usize = 256 << 10;
/// The same in pieces: two writes' worth.
const PIECES: usize = 64;

pub(super) struct HboneSide {
    stream: HboneStream,
    gone: bool,
}

impl HboneSide {
    pub(super) fn new(stream: HboneStream) -> Self {
        Self { stream, gone: false }
    }

    fn gone(&mut self, end: StreamEnd) -> Gone {
        self.gone = true;
        match end {
            StreamEnd::Closed => Gone::Closed,
            end @ (StreamEnd::Reset(_) | StreamEnd::Lost(_)) => Gone::Lost(Loss::Hbone(end)),
        }
    }
}

impl SideIo for HboneSide {
    fn pulls(&self) -> bool {
        true
    }

    fn poll_pull(
        &mut self,
        cx: &mut Context<'_>,
        socket: &TcpStream,
        want: usize,
    ) -> Poll<Result<Option<Pulled>, PullGone>> {
        let (_, writer) = self.stream.split();
        Poll::Ready(match ready!(writer.poll_pull(cx, socket, want)) {
            Ok(pulled) => Ok(pulled),
            Err(PullError::Socket(error)) => Err(PullGone::Sender(Gone::Lost(Loss::Tcp(error)))),
            Err(PullError::Stream(end)) => Err(PullGone::Receiver(self.gone(end))),
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut Carry) -> Poll<Result<bool, Gone>> {
        let (reader, _) = self.stream.split();
        let mut read = match ready!(reader.poll_read(cx)) {
            Ok(Some(data)) => data,
            Ok(None) => return Poll::Ready(Ok(true)),
            Err(end) => return Poll::Ready(Err(self.gone(end))),
        };
        loop {
            into.push(read);
            if into.len() >= GATHER || into.chunks() >= PIECES {
                return Poll::Ready(Ok(false));
            }
            match reader.poll_read(cx) {
                Poll::Ready(Ok(Some(data))) => read = data,
                // An end is reported again at the next call.
                _ => return Poll::Ready(Ok(false)),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, from: &mut Carry) -> Poll<Result<usize, Gone>> {
        let (_, writer) = self.stream.split();
        let room = match ready!(writer.poll_ready(cx, from.first_len())) {
            Ok(room) => room,
            Err(end) => return Poll::Ready(Err(self.gone(end))),
        };
        let data = from.take(room);
        writer.send(&data);
        Poll::Ready(Ok(data.len()))
    }

    fn passed_on(&mut self, count: usize) {
        self.stream.split().0.release(count);
    }

    fn finish(&mut self, _cx: &mut Context<'_>) -> Result<(), Gone> {
        let finished = self.stream.split().1.finish();
        finished.map_err(|end| self.gone(end))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if self.gone {
            return Poll::Pending;
        }
        let end = ready!(self.stream.split().1.poll_ended(cx));
        Poll::Ready(self.gone(end))
    }

    fn poll_flushed(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        // A reset goes out behind what was sent.
        Poll::Ready(())
    }

    /// The stream knows by itself whether it has ended.
    fn complete(&mut self) {}
}
