//! The words for what the kernel half did with a connection: index of the per-CPU map `counters`, label of the
//! metric `ztunnel_kernel_counters_total`, and what `ztunnel` prints.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $index:literal, $word:literal;)+) => {
        $($(#[doc = $doc])+ pub const $name: u32 = $index;)+
        /// Every counter: index and word, in the order of the indices.
        pub const ALL: &[(u32, &str)] = &[$(($index, $word)),+];
        const _: () = {
            let mut i = 0;
            while i < ALL.len() {
                assert!(ALL[i].0 as usize == i, "counter indices are dense and in order");
                i += 1;
            }
        };
    };
}

counters! {
    /// A connection leaving the pod was turned back to the proxy.
    OUTBOUND_STEERED = 0, "outbound_steered";
    /// A connection to port 15008 was given to the HBONE listener.
    INBOUND_HBONE = 1, "inbound_hbone";
    /// Any other connection from outside was given to the plaintext listener.
    INBOUND_PLAINTEXT = 2, "inbound_plaintext";
    /// The proxy's own connection to the app passed.
    APP_DIAL = 3, "app_dial";
    /// Refused: the pod has no listening proxy (it is starting, or it is down).
    REFUSED_NO_LISTENER = 4, "refused_no_listener";
    /// Refused: the programs run in a namespace that the agent has no record of.
    REFUSED_UNKNOWN_POD = 5, "refused_unknown_pod";
    /// A connection that was open before enrolment (or came from outside) was left alone.
    LEFT_ESTABLISHED = 6, "left_established";
    /// A new connection of a pod that has left the mesh was left alone.
    LEFT_RELEASED = 7, "left_released";
    /// A packet could not be turned back and was dropped.
    DROPPED_TURN_BACK = 8, "dropped_turn_back";
    /// A TCP packet whose header could not be read (tiny fragments, too many extension headers) was dropped.
    DROPPED_UNREADABLE = 9, "dropped_unreadable";
}

/// Entries of map `counters`; more than are used, so that adding a word does not change the ABI.
pub const CAPACITY: u32 = 32;
