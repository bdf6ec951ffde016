//! Takes out of an eBPF object what only a debugger reads. BTF is no such thing: the kernel gets types and source
//! lines from it, so it stays.

use anyhow::{Context as _, Result};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// `object` without its DWARF: five sixths of what the linker leaves in it. It would be part of the binary, and every
/// load of it (one per pod) would go through its relocations.
pub(crate) fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(object).context("reading the object")?;
    for section in elf.sections.iter_mut() {
        let name = section.name.as_slice();
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete = name.starts_with(b".debug_");
    }
    // LLVM puts the names of sections and of symbols into one table, which the builder takes for the symbols'.
    let names = elf.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped).context("writing the object")?;
    Ok(stripped)
}
