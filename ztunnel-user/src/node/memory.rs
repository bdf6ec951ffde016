//! The memory of this process: how the allocator is set, and how what is not needed any more goes back to the kernel.
//! It decides neither when (`agent::rest` does) nor what memory is used for.
#![expect(
    unsafe_code,
    reason = "mallopt, malloc_trim and madvise have no safe wrappers"
)]

use std::{ffi::c_void, ptr};

use libc::{PF_W, PT_LOAD, c_int, dl_phdr_info, size_t};
use nix::unistd::{SysconfVar, sysconf};

/// Sets the allocator. To be called before there are threads; of another C library than glibc nothing is asked.
///
/// One arena: only of the first arena does `malloc_trim` give back the end, which is where most of what a burst of
/// traffic has used lies. And nothing goes back while it is in use: buffers that are mapped or trimmed each time cost
/// half as much again as carrying their bytes, in page faults (docs/performance.md, Memory).
pub fn configure() {
    #[cfg(target_env = "gnu")]
    {
        /// The variable by which glibc itself is told the number of its arenas: who has set it is not overruled.
        const ARENAS_VARIABLE: &str = "MALLOC_ARENA_MAX";
        /// From this size on, memory is mapped for one allocation and unmapped with it; bytes, the most glibc takes.
        const MAP_FROM: c_int = 32 << 20;
        /// So much free memory at the end of the heap goes back at once; less waits for [`give_back_heap`]. Bytes.
        const TRIM_FROM: c_int = 64 << 20;

        if std::env::var_os(ARENAS_VARIABLE).is_none() {
            set(libc::M_ARENA_MAX, 1);
        }
        // Each also ends glibc's own adjusting of both, which would take the largest block ever freed as its measure.
        set(libc::M_MMAP_THRESHOLD, MAP_FROM);
        set(libc::M_TRIM_THRESHOLD, TRIM_FROM);
    }
}

#[cfg(target_env = "gnu")]
fn set(parameter: c_int, value: c_int) {
    // SAFETY: mallopt takes two integers and may be called at any time; a value that it refuses changes nothing.
    let taken = unsafe { libc::mallopt(parameter, value) };
    debug_assert_eq!(taken, 1, "glibc refuses parameter {parameter}");
}

/// Gives the heap's free pages back. Whoever allocates meanwhile waits: under a millisecond for each 10 MB.
pub fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches free memory only, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages of code and constants, this program's and its libraries'. They stay in the page cache; those that
/// are needed again are mapped again when they are touched, without reading the file.
///
/// Breakpoints and uprobes of a debugger are pages of this process's own, and are lost.
pub fn let_go_of_code() {
    // SAFETY: the callback has the signature that is asked for, keeps nothing, and is called before this returns.
    unsafe {
        libc::dl_iterate_phdr(Some(let_go_of_object), ptr::null_mut());
    }
}

/// Called for each loaded object; a result that is not zero ends the round.
unsafe extern "C" fn let_go_of_object(object: *mut dl_phdr_info, _: size_t, _: *mut c_void) -> c_int {
    // SAFETY: the dynamic linker passes a valid description, which lives as long as this call.
    let object = unsafe { &*object };
    let Some(page) = page_size() else {
        return 1;
    };
    // SAFETY: the program headers of a loaded object are mapped, and there are as many as it says.
    let segments = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    for segment in segments {
        // What is writable in the file is written at start (relocations), also where it is read-only by now.
        if segment.p_type != PT_LOAD || segment.p_flags & PF_W != 0 {
            continue;
        }
        let begin = object.dlpi_addr.wrapping_add(segment.p_vaddr);
        let end = begin.wrapping_add(segment.p_memsz).wrapping_add(page - 1) & !(page - 1);
        let begin = begin & !(page - 1);
        let (Ok(begin), Ok(length)) = (usize::try_from(begin), usize::try_from(end.wrapping_sub(begin)))
        else {
            continue;
        };
        // SAFETY: the pages are a private mapping of a file (or the kernel's, of its vDSO) that nobody here has written
        // to, so that what comes back is what was there. If it fails, they stay.
        unsafe {
            libc::madvise(ptr::without_provenance_mut(begin), length, libc::MADV_DONTNEED);
        }
    }
    0
}

/// Bytes; `None` if it is no power of two, which is on no machine.
fn page_size() -> Option<u64> {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    u64::try_from(size).ok().filter(|size| size.is_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of the resident pages of this kind, from /proc/self/status.
    fn resident(kind: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(kind)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn code_that_was_let_go_of_still_runs_and_is_resident_no_more() {
        let before = resident("RssFile");
        let_go_of_code();
        let after = resident("RssFile");
        assert!(after < before, "{after} of {before} kB");
        let_go_of_code();
        assert_eq!("still here".len(), 10);
    }
}
