//! Finds the place of one field in one structure of the running kernel, in the kernel's own description of its types
//! (BTF). It never guesses: a description that cannot be followed is an error.

use std::io;

/// Where the kernel publishes its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// `BTF_MAGIC`.
const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// Bytes of a type before what depends on its kind.
const TYPE: usize = 12;
const MEMBER: usize = 12;

// Kinds of types (`BTF_KIND_*`).
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// Offset of `field` in `structure`, bytes.
///
/// # Errors
/// The kernel publishes no types, or there is no such field at a whole byte.
pub(super) fn offset(structure: &str, field: &str) -> io::Result<u32> {
    offset_in(&std::fs::read(VMLINUX)?, structure, field)
        .ok_or_else(|| io::Error::other(format!("{VMLINUX} does not tell where {structure}.{field} is")))
}

fn offset_in(btf: &[u8], structure: &str, field: &str) -> Option<u32> {
    if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header = usize::try_from(word(btf, 4)?).ok()?.max(HEADER);
    let section = |at: usize| {
        let start = header.checked_add(usize::try_from(word(btf, at)?).ok()?)?;
        let len = usize::try_from(word(btf, at + 4)?).ok()?;
        btf.get(start..start.checked_add(len)?)
    };
    let (types, names) = (section(8)?, section(16)?);
    let is = |name: u32, wanted: &str| {
        let tail = usize::try_from(name).ok().and_then(|at| names.get(at..));
        tail.is_some_and(|tail| tail.split(|byte| *byte == 0).next() == Some(wanted.as_bytes()))
    };
    let mut at = 0;
    while at < types.len() {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        let (kind, count) = ((info >> 24) & 0x1f, usize::try_from(info & 0xffff).ok()?);
        let rest = at.checked_add(TYPE)?;
        if kind == STRUCT && is(name, structure) {
            return (0..count).find_map(|member| {
                let member = rest + member * MEMBER;
                let bits = word(types, member + 8)?;
                // With the flag the upper byte is the size of a bit field.
                let bits = if info >> 31 == 1 { bits & 0xff_ffff } else { bits };
                (is(word(types, member)?, field) && bits % 8 == 0).then_some(bits / 8)
            });
        }
        at = rest.checked_add(more(kind, count))?;
    }
    None
}

/// Bytes of a type after its first [`TYPE`].
fn more(kind: u32, count: usize) -> usize {
    match kind {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * count,
        ENUM | FUNC_PROTO => 8 * count,
        _ => 0,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `int`, then `struct outer { int a; int b; int c:3; }`.
    fn types() -> Vec<u8> {
        let names = b"\0int\0outer\0a\0b\0c\0";
        let types: Vec<u32> = vec![
            1,
            INT << 24,
            4,
            32, //
            5,
            STRUCT << 24 | 1 << 31 | 3,
            12,
            11,
            1,
            0,
            13,
            1,
            32,
            15,
            1,
            3 << 24 | 67,
        ];
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let header = [24, 0, len(&types), len(&types), len(names)];
        let mut btf = MAGIC.to_ne_bytes().to_vec();
        btf.extend([1, 0]);
        btf.extend(header.iter().flat_map(|word: &u32| word.to_ne_bytes()));
        btf.extend(types);
        btf.extend(names);
        btf
    }

    #[test]
    fn a_field_is_found_where_it_is() {
        assert_eq!(offset_in(&types(), "outer", "a"), Some(0));
        assert_eq!(offset_in(&types(), "outer", "b"), Some(4));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(offset_in(&types(), "outer", "d"), None);
        assert_eq!(offset_in(&types(), "inner", "a"), None);
        assert_eq!(offset_in(&types(), "outer", "c"), None, "not at a whole byte");
    }

    #[test]
    fn a_description_cut_anywhere_is_an_error_and_no_panic() {
        let whole = types();
        for end in 0..whole.len() {
            assert_eq!(offset_in(&whole[..end], "outer", "b"), None, "cut at {end}");
        }
    }

    #[test]
    fn the_running_kernel_tells() {
        let place = offset("tcp_sock", "write_seq").unwrap();
        assert!(place > 0 && place.is_multiple_of(4), "{place}");
    }
}
