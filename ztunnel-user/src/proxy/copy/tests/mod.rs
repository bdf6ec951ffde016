//! What two applications see of each other through the relay.
