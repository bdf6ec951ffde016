//! What a program answers, as types that cannot be dropped unread.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_set_retval,
};

use crate::maps::HAS_SET_RETVAL;

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

/// Answer of the connect programs.
#[must_use]
pub enum Connect {
    /// connect() goes on.
    Allow,
    /// It fails with this error number; with EPERM where the kernel cannot be told another.
    Refuse(i32),
}

impl From<Connect> for i32 {
    #[inline(always)]
    fn from(verdict: Connect) -> Self {
        match verdict {
            Connect::Allow => 1,
            Connect::Refuse(errno) => {
                if HAS_SET_RETVAL.load() != 0 {
                    // SAFETY: the helper takes a number. What it answers changes nothing.
                    let _ = unsafe { bpf_set_retval(-errno) };
                }
                0
            }
        }
    }
}
