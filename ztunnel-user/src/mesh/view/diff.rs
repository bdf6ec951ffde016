//! What must change for one view to become another. It compares; in what order the changes are safe to make is
//! written here, and kept by whoever makes them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{AddressKind, ServiceView, View};

/// The difference of two views.
///
/// Made one by one, in this order, no step lets an address that both views know be taken for one that is unknown,
/// or a port of a service for one that does not exist: upsert `services`, add `ranges`, upsert `addresses`; then
/// remove `addresses`, `ranges`, `services`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changes<'a> {
    /// Of [`View::addresses`].
    pub addresses: TableChanges<'a, IpAddr, AddressKind>,
    /// Of [`View::ranges`]: those to remove.
    pub ranges_to_remove: Vec<IpNet>,
    /// Of [`View::ranges`]: those to add.
    pub ranges_to_add: Vec<IpNet>,
    /// Of [`View::services`].
    pub services: TableChanges<'a, (IpAddr, u16), ServiceView>,
}

/// The difference of two tables. Both lists are in ascending order, and no key is in both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableChanges<'a, K, V> {
    /// Keys that are no more.
    pub remove: Vec<K>,
    /// Keys that are new or have a new value.
    pub upsert: Vec<(K, &'a V)>,
}

impl Changes<'_> {
    /// Whether the views are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
            && self.ranges_to_remove.is_empty()
            && self.ranges_to_add.is_empty()
            && self.services.is_empty()
    }
}

impl<K, V> TableChanges<'_, K, V> {
    /// Whether the tables are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.upsert.is_empty()
    }
}

/// What makes `new` of `old`, and nothing that is the same already.
#[must_use]
pub fn changes<'a>(old: &View, new: &'a View) -> Changes<'a> {
    Changes {
        addresses: table(&old.addresses, &new.addresses),
        ranges_to_remove: old.ranges.difference(&new.ranges).copied().collect(),
        ranges_to_add: new.ranges.difference(&old.ranges).copied().collect(),
        services: table(&old.services, &new.services),
    }
}

fn table<'a, K: Ord + Copy, V: PartialEq>(
    old: &BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> TableChanges<'a, K, V> {
    TableChanges {
        remove: old.keys().filter(|key| !new.contains_key(key)).copied().collect(),
        upsert: new
            .iter()
            .filter(|(key, value)| old.get(key) != Some(value))
            .map(|(key, value)| (*key, value))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AliasTable, EndpointKind, EndpointView};
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn endpoints(lasts: &[u8]) -> ServiceView {
        let endpoint = |last: &u8| EndpointView {
            ip: ip(*last),
            port: 80,
            weight: 1,
            kind: EndpointKind::Plain,
        };
        ServiceView::Endpoints {
            set: AliasTable::new(lasts.iter().map(endpoint), |endpoint| endpoint.weight),
            affinity: false,
        }
    }

    fn range(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn old() -> View {
        View {
            addresses: [
                (ip(1), AddressKind::Plain),
                (ip(2), AddressKind::Pod { cookie: 2 }),
                (ip(3), AddressKind::Service),
                (ip(4), AddressKind::Steer),
            ]
            .into(),
            ranges: [range("10.1.0.0/16"), range("10.2.0.0/16")].into(),
            services: [
                ((ip(3), 80), endpoints(&[1, 2])),
                ((ip(3), 81), endpoints(&[1])),
                ((ip(3), 82), ServiceView::NoEndpoint),
            ]
            .into(),
        }
    }

    #[test]
    fn the_same_view_changes_nothing() {
        assert!(changes(&old(), &old()).is_empty());
    }

    #[test]
    fn only_what_differs_is_changed() {
        let mut new = old();
        new.addresses.remove(&ip(1));
        new.addresses.insert(ip(2), AddressKind::Pod { cookie: 3 });
        new.addresses.insert(ip(5), AddressKind::Plain);
        new.ranges = [range("10.2.0.0/16"), range("10.3.0.0/16")].into();
        new.services.remove(&(ip(3), 82));
        new.services.insert((ip(3), 80), endpoints(&[1]));
        new.services.insert((ip(3), 83), ServiceView::Steer);
        let changes = changes(&old(), &new);
        assert!(!changes.is_empty());
        assert_eq!(changes.addresses.remove, [ip(1)]);
        assert_eq!(
            changes.addresses.upsert,
            [
                (ip(2), &AddressKind::Pod { cookie: 3 }),
                (ip(5), &AddressKind::Plain)
            ]
        );
        assert_eq!(changes.ranges_to_remove, [range("10.1.0.0/16")]);
        assert_eq!(changes.ranges_to_add, [range("10.3.0.0/16")]);
        assert_eq!(changes.services.remove, [(ip(3), 82)]);
        assert_eq!(
            changes.services.upsert,
            [
                ((ip(3), 80), &endpoints(&[1])),
                ((ip(3), 83), &ServiceView::Steer)
            ]
        );
    }

    #[test]
    fn each_kind_of_change_is_one() {
        let change = |make: fn(&mut View)| {
            let mut new = old();
            make(&mut new);
            assert!(!changes(&old(), &new).is_empty());
            assert!(!changes(&new, &old()).is_empty());
        };
        change(|view| view.addresses.retain(|at, _| *at != ip(4)));
        change(|view| view.ranges.retain(|at| *at != range("10.1.0.0/16")));
        change(|view| view.services.retain(|at, _| *at != (ip(3), 80)));
    }
}
