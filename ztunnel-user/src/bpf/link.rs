//! Links of a kind that aya cannot pin (its `CgroupSockoptLink` does not become an `FdLink`): made and pinned by two
//! calls of bpf(2). It attaches what it is given where it is told.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper for these two commands")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `BPF_OBJ_PIN`.
const OBJ_PIN: libc::c_int = 6;
/// `BPF_LINK_CREATE` (kernel 5.7).
const LINK_CREATE: libc::c_int = 28;
/// `BPF_CGROUP_SETSOCKOPT`.
const CGROUP_SETSOCKOPT: u32 = 22;

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`; what is left out counts as zero.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C)]
struct ObjPin {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// Attaches a setsockopt program to a cgroup, beside others that may hang there, and pins the link at `path`, where
/// nothing may be yet.
pub(super) fn pin_setsockopt(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let attribute = LinkCreate {
        program: number(program),
        target: number(cgroup),
        attach_type: CGROUP_SETSOCKOPT,
        flags: 0,
    };
    let descriptor = bpf(LINK_CREATE, &attribute)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attribute = ObjPin {
        path: path.as_ptr() as u64,
        descriptor: link.as_raw_fd().unsigned_abs(),
        flags: 0,
    };
    bpf(OBJ_PIN, &attribute).map(drop)
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    descriptor.as_raw_fd().unsigned_abs()
}

fn bpf<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_int> {
    // SAFETY: the attribute is as large as said, and outlives the call together with what it points to.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attribute),
            size_of::<T>(),
        )
    };
    match libc::c_int::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}
