//! How a type becomes part of the kernel boundary: fixed size, no padding, plain integers and bytes only.

/// Version of every layout in this crate, and of the maps' sizes. It names the pin directory (`v<ABI_VERSION>`), so two
/// versions never read each other's maps.
pub const ABI_VERSION: u32 = 3;

/// Field types that may cross: every bit pattern is a value, and both compilers lay them out alike.
pub trait AbiField {}
impl AbiField for u16 {}
impl AbiField for u32 {}
impl AbiField for u64 {}
impl<const N: usize> AbiField for [u8; N] {}
impl AbiField for crate::addr::Ip16 {}
impl AbiField for crate::flow::FlowRecord {}

/// Declares a struct shared with the kernel. The build stops if its size differs from the one named, or if the
/// compiler would pad it, or if a field could hold an invalid bit pattern.
macro_rules! abi_struct {
    ($(#[$meta:meta])* pub struct $name:ident: $size:literal {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)+
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)+ }
        const _: () = assert!(size_of::<$name>() == $size, "ABI size changed: raise ABI_VERSION");
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())+, "implicit padding");
        const _: fn() = || {
            fn crosses<T: $crate::abi::AbiField>() {}
            $(crosses::<$type>();)+
        };
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "a value is read from bytes as the kernel half wrote them")]
        impl $name {
            /// Reads a value as it lies in memory; `None` if the bytes are not exactly as many.
            #[must_use]
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                if bytes.len() != size_of::<Self>() {
                    return None;
                }
                // SAFETY: as many bytes as the type has, every bit pattern is a value (AbiField), any alignment.
                Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
            }

            /// The bytes as they lie in memory.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                // SAFETY: no padding (asserted above), so every byte is initialised; borrowed for as long as the value.
                unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
            }
        }
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]
        // SAFETY: repr(C), no padding (asserted above), and every field accepts every bit pattern (AbiField).
        unsafe impl aya::Pod for $name {}
    };
}
pub(crate) use abi_struct;
