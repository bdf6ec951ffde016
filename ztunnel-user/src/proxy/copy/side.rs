//! What the relay asks of an end, whatever it is made of.

use std::task::{Context, Poll};

use super::Loss;
use super::carry::Carry;

/// Why an end takes and gives no more bytes.
#[derive(Debug)]
pub(super) enum Gone {
    /// It closed both ways and said that nothing went wrong.
    Closed,
    /// It was reset, or lost.
    Lost(Loss),
}

pub(super) trait SideIo {
    /// Reads what there is, up to a buffer's worth. `true` is the orderly end of this way. Bytes that came
    /// before a reset are read before it is reported.
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut Carry) -> Poll<Result<bool, Gone>>;

    /// Writes some of `from`, which is not empty.
    fn poll_write(&mut self, cx: &mut Context<'_>, from: &mut Carry) -> Poll<Result<usize, Gone>>;

    /// Bytes that were read here have been written to the other end.
    fn passed_on(&mut self, count: usize);

    /// Ends the way to this end in order.
    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), Gone>;

    /// Waits for a reset without reading. Only for when nothing else would notice.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone>;

    /// Waits until what was written is where a reset does not overtake it, as far as we can tell.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// From now on dropping this end ends it in order; until then, dropping it resets it.
    fn complete(&mut self);
}
