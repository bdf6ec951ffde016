//! Cuts the decrypted bytes of a peer into frames. Payloads of DATA are handed on as they come, without a copy; other
//! payloads are gathered first, within bounds. What a frame means is decided by the tunnel.

use bytes::{Buf, Bytes};

use super::error::Fault;
use super::frame::{HEAD, Head, Reason, flag, kind};
use super::settings::MAX_FRAME;
use super::tunnel::Core;

/// Most bytes of a header block, all its frames together; far above what any header list may hold.
const MAX_BLOCK: usize = 128 << 10;
/// Most frames of a header block.
const MAX_CONTINUATIONS: u32 = 64;
/// Most bytes of a frame that carries neither data nor headers: SETTINGS with a hundred entries, GOAWAY with a story.
const MAX_CONTROL: u32 = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// The first frame has come, which has to be SETTINGS (RFC 9113, 3.4).
    begun: bool,
    head: [u8; HEAD],
    have: usize,
    frame: Option<Frame>,
    /// The payload so far of a frame that is not DATA.
    payload: Vec<u8>,
    block: Option<Block>,
}

#[derive(Debug)]
struct Frame {
    head: Head,
    /// Payload that is still to come.
    left: usize,
    /// Of these, padding at the end; unknown before the first byte of a padded frame.
    padding: Padding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Padding {
    Unknown,
    Bytes(usize),
}

/// A header block whose end has not come.
#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
    frames: u32,
}

impl Incoming {
    /// Whether nothing has been begun that is not complete.
    pub(super) fn is_between_frames(&self) -> bool {
        self.have == 0 && self.frame.is_none() && self.block.is_none()
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: Bytes, core: &mut Core) -> Result<(), Fault> {
        loop {
            let Some(frame) = &mut self.frame else {
                if bytes.is_empty() {
                    return Ok(());
                }
                let missing = self.head.get_mut(self.have..).unwrap_or_default();
                let count = missing.len().min(bytes.len());
                let (now, _) = missing.split_at_mut(count);
                bytes.copy_to_slice(now);
                self.have += count;
                if self.have < HEAD {
                    return Ok(());
                }
                self.have = 0;
                self.begin(Head::read(self.head), core)?;
                continue;
            };
            if frame.left == 0 {
                let head = frame.head;
                self.frame = None;
                self.end(head, core)?;
                continue;
            }
            if bytes.is_empty() {
                return Ok(());
            }
            if frame.head.kind != kind::DATA {
                let now = bytes.split_to(frame.left.min(bytes.len()));
                frame.left -= now.len();
                self.payload.extend_from_slice(&now);
                continue;
            }
            let pad = match frame.padding {
                Padding::Bytes(pad) => pad,
                Padding::Unknown => {
                    let pad = usize::from(bytes.get_u8());
                    frame.left -= 1;
                    if pad > frame.left {
                        return Err(Fault::new(Reason::PROTOCOL_ERROR, "more padding than payload"));
                    }
                    frame.padding = Padding::Bytes(pad);
                    core.data_skipped(frame.head.stream, pad + 1);
                    continue;
                }
            };
            let data = frame.left - pad.min(frame.left);
            if data == 0 {
                let now = frame.left.min(bytes.len());
                bytes.advance(now);
                frame.left -= now;
                frame.padding = Padding::Bytes(frame.left);
                continue;
            }
            let now = bytes.split_to(data.min(bytes.len()));
            frame.left -= now.len();
            core.data(frame.head.stream, now);
        }
    }

    fn begin(&mut self, head: Head, core: &mut Core) -> Result<(), Fault> {
        if head.length > MAX_FRAME {
            return Err(Fault::new(
                Reason::FRAME_SIZE_ERROR,
                "a frame longer than announced",
            ));
        }
        if !std::mem::replace(&mut self.begun, true) && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(Fault::new(
                Reason::PROTOCOL_ERROR,
                "a first frame that is not SETTINGS",
            ));
        }
        let continues = self.block.as_ref().map(|block| block.stream);
        let expected = match continues {
            Some(stream) => head.kind == kind::CONTINUATION && head.stream == stream,
            None => head.kind != kind::CONTINUATION,
        };
        if !expected {
            return Err(Fault::new(
                Reason::PROTOCOL_ERROR,
                "a header block that does not go on, or goes on without a beginning",
            ));
        }
        match head.kind {
            kind::DATA => core.data_begins(head)?,
            kind::HEADERS | kind::CONTINUATION
                if usize::try_from(head.length).is_ok_and(|it| it <= MAX_BLOCK) => {}
            kind::HEADERS | kind::CONTINUATION => return Err(too_long()),
            _ if head.length > MAX_CONTROL => {
                return Err(Fault::new(
                    Reason::ENHANCE_YOUR_CALM,
                    "a control frame that is too long",
                ));
            }
            _ => {}
        }
        let padded = head.kind == kind::DATA && head.has(flag::PADDED);
        if padded && head.length == 0 {
            return Err(Fault::new(Reason::FRAME_SIZE_ERROR, "padding without a length"));
        }
        self.payload.clear();
        self.frame = Some(Frame {
            head,
            left: usize::try_from(head.length).unwrap_or(usize::MAX),
            padding: if padded {
                Padding::Unknown
            } else {
                Padding::Bytes(0)
            },
        });
        Ok(())
    }

    fn end(&mut self, head: Head, core: &mut Core) -> Result<(), Fault> {
        match head.kind {
            kind::DATA => {
                core.data_ends(head);
                Ok(())
            }
            kind::HEADERS => {
                let fragment = headers_fragment(head, &self.payload)?;
                self.block = Some(Block {
                    stream: head.stream,
                    end_stream: head.has(flag::END_STREAM),
                    bytes: fragment.to_vec(),
                    frames: 0,
                });
                self.block_goes_on(head, core)
            }
            kind::CONTINUATION => {
                if let Some(block) = &mut self.block {
                    block.frames += 1;
                    block.bytes.extend_from_slice(&self.payload);
                }
                self.block_goes_on(head, core)
            }
            _ => core.control(head, &self.payload),
        }?;
        // A header block of a hostile size is not kept as room for the next one.
        if self.payload.capacity() > usize::try_from(MAX_CONTROL).unwrap_or_default() {
            self.payload = Vec::new();
        }
        Ok(())
    }

    fn block_goes_on(&mut self, head: Head, core: &mut Core) -> Result<(), Fault> {
        let too_much = |block: &Block| block.bytes.len() > MAX_BLOCK || block.frames > MAX_CONTINUATIONS;
        if self.block.as_ref().is_some_and(too_much) {
            return Err(too_long());
        }
        if !head.has(flag::END_HEADERS) {
            return Ok(());
        }
        match self.block.take() {
            Some(block) => core.headers(block.stream, &block.bytes, block.end_stream),
            None => Ok(()),
        }
    }
}

fn too_long() -> Fault {
    Fault::new(Reason::ENHANCE_YOUR_CALM, "a header block that is too long")
}

/// The header block in the payload of HEADERS, without padding and priority.
fn headers_fragment(head: Head, payload: &[u8]) -> Result<&[u8], Fault> {
    let short = || Fault::new(Reason::FRAME_SIZE_ERROR, "HEADERS too short");
    let mut rest = payload;
    let mut padding = 0;
    if head.has(flag::PADDED) {
        let (first, tail) = rest.split_first().ok_or_else(short)?;
        (padding, rest) = (usize::from(*first), tail);
    }
    if head.has(flag::PRIORITY) {
        rest = rest.get(5..).ok_or_else(short)?;
    }
    let length = rest
        .len()
        .checked_sub(padding)
        .ok_or_else(|| Fault::new(Reason::PROTOCOL_ERROR, "more padding than payload"))?;
    rest.get(..length).ok_or_else(short)
}
