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
    /// connect() was steered to the proxy.
    CONNECT_STEERED = 10, "connect_steered";
    /// connect() to a destination outside the mesh, or to one that takes plain text, was left to the kernel.
    CONNECT_PASSTHROUGH = 11, "connect_passthrough";
    /// connect() to an excluded destination was left to the kernel.
    CONNECT_EXCLUDED = 12, "connect_excluded";
    /// connect() to a pod of this node was authorised and left to the kernel.
    CONNECT_DIRECT = 13, "connect_direct";
    /// connect() was refused because policy refuses it.
    CONNECT_DENIED = 14, "connect_denied";
    /// connect() was refused because the service has no endpoint for it, or no such port.
    CONNECT_NO_ENDPOINT = 15, "connect_no_endpoint";
    /// connect() was refused because no proxy listens for the pod.
    CONNECT_NO_LISTENER = 16, "connect_no_listener";
    /// A direct connection arrived and passed to the app.
    INBOUND_DIRECT = 17, "inbound_direct";
    /// A connection arrived at a pod to which no policy applies, and passed to the app.
    INBOUND_OPEN = 18, "inbound_open";
    /// A probe of the kubelet's passed to the app.
    INBOUND_PROBE = 19, "inbound_probe";
    /// An authorised connection was given to the proxy after all: its tuple could not be recorded, or comes from
    /// another address than the one that was judged.
    DIRECT_NOT_RECORDED = 20, "direct_not_recorded";
    /// A direct connection arrived after the mesh had changed, and was given to the proxy to be judged.
    DIRECT_OUTDATED = 21, "direct_outdated";
    /// Events of connections that found no room in the ring buffer.
    EVENTS_LOST = 22, "events_lost";
    /// Open connections that found no room in map `flows`.
    FLOWS_UNTRACKED = 23, "flows_untracked";
    /// A pod tried to set a mark of the mesh's on a socket, and was refused.
    MARK_REFUSED = 24, "mark_refused";
    /// A connection of another pod of this node arrived that its proxy carries, and passed to the app.
    INBOUND_PROXIED = 25, "inbound_proxied";
}

/// Entries of map `counters`; more than are used, so that adding a word does not change the ABI.
pub const CAPACITY: u32 = 32;
