//! What a program answers, as types that cannot be dropped unread.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};

/// Answer of a tc program.
#[must_use]
pub enum Packet {
    /// No opinion: the next program on the device (the CNI's, say) goes on.
    Continue,
    /// Drop.
    Drop,
    /// What `bpf_redirect` answered.
    Redirected(i32),
}

impl From<Packet> for i32 {
    #[inline(always)]
    fn from(verdict: Packet) -> Self {
        match verdict {
            Packet::Continue => TC_ACT_UNSPEC,
            Packet::Drop => TC_ACT_SHOT,
            Packet::Redirected(action) => action,
        }
    }
}

/// Answer of the sk_lookup program.
#[must_use]
pub enum Lookup {
    /// The app's own socket takes it (or the listener that was assigned).
    Pass,
    /// Refuse: the client gets a reset.
    Refuse,
}

impl From<Lookup> for u32 {
    #[inline(always)]
    fn from(verdict: Lookup) -> Self {
        match verdict {
            Lookup::Refuse => 0, // SK_DROP
            Lookup::Pass => 1,   // SK_PASS
        }
    }
}
