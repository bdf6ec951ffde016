//! The counts of all ways, shared with the kernel half by memory: what is written here is seen by the next send of an
//! app without a system call. It must never give a slot to a way while another has it.
#![expect(
    unsafe_code,
    reason = "memory that the kernel half writes to cannot be a Rust value of its own"
)]

use std::{
    collections::HashMap,
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use ztunnel_common::splice::{SpliceLink, SpliceSlot, WAYS};

/// Array `splice_slots`, mapped.
#[derive(Debug)]
pub(super) struct Slots {
    base: NonNull<SpliceSlot>,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    slots: Vec<u32>,
    /// Ways by slot; none is free.
    taken: HashMap<u32, SpliceLink>,
    /// Numbers of ways are never used twice.
    last: u64,
    /// Of ways that are over.
    over: Totals,
}

/// What went past the proxy, of all ways there ever were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    /// Ways.
    pub(super) ways: u64,
    /// Bytes.
    pub(super) redirected: u64,
    /// How often ways were handed to the kernel.
    pub(super) handovers: u64,
}

// SAFETY: all access to the memory behind `base` is by atomics or by whole words that one side writes.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

const fn size() -> Option<NonZeroUsize> {
    NonZeroUsize::new(WAYS as usize * size_of::<SpliceSlot>())
}

impl Slots {
    /// Maps the array behind `map`, which has [`WAYS`] elements.
    pub(super) fn map(map: impl AsFd) -> io::Result<Self> {
        let size = size().ok_or(io::ErrorKind::InvalidInput)?;
        let (access, kind) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping, at no address of ours.
        let base = unsafe { mmap(None, size, access, kind, map, 0) }?;
        Ok(Self {
            base: base.cast(),
            free: Mutex::new(Free {
                slots: (0..WAYS).rev().collect(),
                taken: HashMap::new(),
                last: 0,
                over: Totals::default(),
            }),
        })
    }

    /// A slot for a new way, all counts zero; `None` if all are taken.
    pub(super) fn take(&self) -> Option<SpliceLink> {
        let mut free = self.free();
        let slot = free.slots.pop()?;
        free.last += 1;
        let at = self.at(slot);
        // SAFETY: inside the mapping; nobody has this slot.
        unsafe { at.write_volatile(SpliceSlot::default()) };
        self.id(slot).store(free.last, Ordering::Release);
        let way = SpliceLink {
            id: free.last,
            slot,
            pad: 0,
        };
        free.taken.insert(slot, way);
        Some(way)
    }

    /// Gives the slot of a way back.
    pub(super) fn give_back(&self, way: SpliceLink) {
        let mut free = self.free();
        self.id(way.slot).store(0, Ordering::Release);
        if free.taken.remove(&way.slot).is_some() {
            free.over = self.plus(free.over, way);
            free.slots.push(way.slot);
        }
    }

    /// What went past the proxy until now.
    pub(super) fn totals(&self) -> Totals {
        let free = self.free();
        free.taken
            .values()
            .fold(free.over, |sum, way| self.plus(sum, *way))
    }

    /// Starts counting anew.
    pub(super) fn forget_totals(&self) {
        self.free().over = Totals::default();
    }

    fn plus(&self, sum: Totals, way: SpliceLink) -> Totals {
        Totals {
            ways: sum.ways + 1,
            redirected: sum.redirected + self.redirected(way),
            handovers: sum.handovers + self.handovers(way),
        }
    }

    /// Bytes have been written that the app had sent to the proxy.
    pub(super) fn relayed(&self, way: SpliceLink, count: u64) {
        // SAFETY: inside the mapping; eight bytes, aligned.
        let place = unsafe { &raw mut (*self.at(way.slot)).relayed };
        atomic(place).fetch_add(count, Ordering::Release);
    }

    /// Bytes that went past the proxy.
    pub(super) fn redirected(&self, way: SpliceLink) -> u64 {
        // SAFETY: as in `relayed`.
        let place = unsafe { &raw mut (*self.at(way.slot)).redirected };
        atomic(place).load(Ordering::Acquire)
    }

    /// How often the way has been handed to the kernel.
    pub(super) fn handovers(&self, way: SpliceLink) -> u64 {
        // SAFETY: as in `relayed`.
        let place = unsafe { &raw mut (*self.at(way.slot)).handovers };
        atomic(place).load(Ordering::Acquire)
    }

    fn id(&self, slot: u32) -> &AtomicU64 {
        // SAFETY: as in `relayed`.
        atomic(unsafe { &raw mut (*self.at(slot)).id })
    }

    fn at(&self, slot: u32) -> *mut SpliceSlot {
        assert!(slot < WAYS, "slot {slot} of {WAYS}");
        // SAFETY: inside the mapping.
        unsafe { self.base.as_ptr().add(slot as usize) }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // Nothing that holds the lock can panic half-way.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn atomic<'a>(place: *mut u64) -> &'a AtomicU64 {
    // SAFETY: called with aligned places inside the mapping, which outlives every borrow of `Slots`.
    unsafe { AtomicU64::from_ptr(place) }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let Some(size) = size() else { return };
        // SAFETY: exactly what `map` made, and nobody borrows it any more.
        if let Err(error) = unsafe { munmap(self.base.cast(), size.get()) } {
            tracing::debug!(%error, "the counts of spliced connections stay mapped");
        }
    }
}
