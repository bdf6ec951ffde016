//! The few header fields of a CONNECT and of its answer that mean something here, as they came. Everything else a peer
//! writes is skipped; nothing is judged.

use super::hpack::{Decoder, HpackError, Size};

/// What a header block said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// `:method`
    pub method: Option<Box<str>>,
    /// `:authority`
    pub authority: Option<Box<str>>,
    /// `:protocol` (RFC 8441)
    pub protocol: Option<Box<str>>,
    /// `:status`; 0 if there is none that is a number of three digits.
    pub status: u16,
    /// `baggage`
    pub baggage: Option<Box<str>>,
    /// `forwarded`
    pub forwarded: Option<Box<str>>,
    /// `traceparent`
    pub traceparent: Option<Box<str>>,
    /// `x-forwarded-network`
    pub network: Option<Box<str>>,
}

/// Names that begin with a colon, each at most once and before all others.
const PSEUDO: [&[u8]; 6] = [
    b":method",
    b":authority",
    b":scheme",
    b":path",
    b":protocol",
    b":status",
];
/// Fields of an HTTP/1 connection, which mean something to a proxy that does not know better.
const CONNECTION: [&[u8]; 5] = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
];

/// The form of a list so far.
#[derive(Debug, Default)]
struct Form {
    seen: [bool; PSEUDO.len()],
    others: bool,
    wrong: bool,
}

impl Form {
    fn look(&mut self, name: &[u8]) {
        let fits = if name.first() == Some(&b':') {
            let which = PSEUDO.iter().position(|pseudo| *pseudo == name);
            let seen = which.and_then(|which| self.seen.get_mut(which));
            !self.others && seen.is_some_and(|seen| !std::mem::replace(seen, true))
        } else {
            self.others = true;
            !name.is_empty() && !CONNECTION.contains(&name)
        };
        self.wrong |= !fits || name.iter().any(u8::is_ascii_uppercase);
    }
}

impl Fields {
    /// Reads a block. `None` if its list is longer than `limit` octets, or malformed (RFC 9113, 8.2 and 8.3): what two
    /// readers may understand differently is understood by none.
    pub(super) fn decode(
        decoder: &mut Decoder,
        block: &[u8],
        limit: usize,
    ) -> Result<Option<Self>, HpackError> {
        let mut fields = Self::default();
        let mut form = Form::default();
        let read = decoder.decode(block, limit, |name, value| {
            form.look(name);
            fields.set(name, value);
        });
        match read? {
            Size::TooLong => Ok(None),
            _ => Ok((!form.wrong).then_some(fields)),
        }
    }

    /// Notes one field. Of a repeated one the first counts (a list that repeats one of [`PSEUDO`] is refused as a whole);
    /// one that is not visible ASCII is skipped.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let field = match name {
            b":method" => &mut self.method,
            b":authority" => &mut self.authority,
            b":protocol" => &mut self.protocol,
            b"baggage" => &mut self.baggage,
            b"forwarded" => &mut self.forwarded,
            b"traceparent" => &mut self.traceparent,
            b"x-forwarded-network" => &mut self.network,
            b":status" => {
                if let (0, &[a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) = (self.status, value) {
                    let digit = |byte: u8| u16::from(byte - b'0');
                    self.status = digit(a) * 100 + digit(b) * 10 + digit(c);
                }
                return;
            }
            _ => return,
        };
        let visible = |byte: &u8| *byte == b'\t' || (b' '..=b'~').contains(byte);
        if field.is_none()
            && value.iter().all(visible)
            && let Ok(text) = std::str::from_utf8(value)
        {
            *field = Some(text.into());
        }
    }
}
