//! One form for both address families, so that no map and no comparison has two shapes.

/// An IP address as 16 bytes in network byte order; IPv4 as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
///
/// Aligned so that the kernel half handles it as four words: a BPF program's stack of 512 bytes is soon full of
/// single bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Ip16(pub [u8; 16]);

impl Ip16 {
    /// The v4-mapped form of four bytes in network byte order.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, octets[0], octets[1], octets[2], octets[3],
        ])
    }

    /// Four 32-bit words, each as it lies in memory in network byte order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = [
            words[0].to_ne_bytes(),
            words[1].to_ne_bytes(),
            words[2].to_ne_bytes(),
            words[3].to_ne_bytes(),
        ];
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
        ])
    }

    #[inline(always)]
    const fn word(&self, i: usize) -> u32 {
        u32::from_be_bytes([
            self.0[4 * i],
            self.0[4 * i + 1],
            self.0[4 * i + 2],
            self.0[4 * i + 3],
        ])
    }

    /// 127.0.0.0/8 or ::1: traffic that never leaves the pod and is never touched.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if (self.word(0) | self.word(1)) != 0 {
            return false;
        }
        let mapped = self.word(2) == 0xffff && self.word(3) >> 24 == 127;
        let v6 = self.word(2) == 0 && self.word(3) == 1;
        mapped || v6
    }

    /// The four words as [`Self::from_words`] takes them.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        [
            self.word(0).to_be(),
            self.word(1).to_be(),
            self.word(2).to_be(),
            self.word(3).to_be(),
        ]
    }

    /// An IPv4 address, in its mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.word(0) | self.word(1) == 0 && self.word(2) == 0xffff
    }

    /// 0.0.0.0 or ::.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let v4 = self.is_v4() && self.word(3) == 0;
        v4 || self.word(0) | self.word(1) | self.word(2) | self.word(3) == 0
    }

    /// fe80::/10: scoped to one link, so it can name no mesh destination.
    #[inline(always)]
    pub const fn is_v6_link_local(&self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }
}

#[cfg(feature = "user")]
impl From<core::net::IpAddr> for Ip16 {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip.to_canonical() {
            core::net::IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

#[cfg(feature = "user")]
impl From<Ip16> for core::net::IpAddr {
    fn from(ip: Ip16) -> Self {
        Self::V6(ip.0.into()).to_canonical()
    }
}

#[cfg(feature = "user")]
#[cfg(test)]
mod tests {
    use core::net::IpAddr;
    use std::string::ToString;

    use super::Ip16;

    fn ip(text: &str) -> Ip16 {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn loopback_is_127_slash_8_and_v6_one_only() {
        for yes in ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.3.2.1"] {
            assert!(ip(yes).is_loopback(), "{yes}");
        }
        for no in [
            "126.0.0.1",
            "128.0.0.1",
            "::2",
            "::",
            "0.0.0.0",
            "fd00::1",
            "10.0.0.127",
        ] {
            assert!(!ip(no).is_loopback(), "{no}");
        }
    }

    #[test]
    fn addresses_survive_the_round_trip_in_canonical_form() {
        for text in ["10.1.2.3", "fd00::7", "0.0.0.0", "2001:db8::ffff:1:2"] {
            assert_eq!(IpAddr::from(ip(text)).to_string(), text);
        }
        assert_eq!(IpAddr::from(ip("::ffff:10.0.0.1")).to_string(), "10.0.0.1");
    }

    #[test]
    fn link_local_is_fe80_slash_10() {
        assert!(ip("fe80::1").is_v6_link_local() && ip("febf::1").is_v6_link_local());
        assert!(!ip("fec0::1").is_v6_link_local() && !ip("169.254.1.1").is_v6_link_local());
    }
}
