//! Owns the requests of which the connection of a task to a network outside is made.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, RawFd},
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    link::{AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute, MacVlanMode},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState},
    route::RouteType,
};
use rtnetlink::{LinkMacVlan, LinkUnspec, LinkVlan, RouteMessageBuilder};

use super::{Link, Netlink, errno, failed, route::direct_route};
use crate::effects::network::{error::NetworkError, interfaces::LinkAddress, names::Mac, netns::Entered};

impl Netlink {
    /// Makes a link upon `uplink`, down, inside of a namespace in which there is none of that name.
    pub(in super::super) async fn create_macvlan(
        &self,
        uplink: &Link,
        name: &str,
        mac: Mac,
        netns: &Entered,
    ) -> Result<(), NetworkError> {
        let message = LinkMacVlan::new(name, uplink.index, MacVlanMode::Bridge)
            .address(mac.to_vec())
            .setns_by_fd(netns.file.as_raw_fd());
        let request = self.handle.link().add(message.build());
        request
            .execute()
            .await
            .map_err(failed("make a macvlan link upon", &uplink.name))
    }

    /// Makes the link that is one VLAN of `uplink`. False: there is one already.
    pub(in super::super) async fn create_vlan(
        &self,
        uplink: &Link,
        name: &str,
        id: u16,
    ) -> Result<bool, NetworkError> {
        let message = LinkVlan::new(name, uplink.index, id).build();
        match self.handle.link().add(message).execute().await {
            Ok(()) => Ok(true),
            Err(e) if errno(&e) == libc::EEXIST => Ok(false),
            Err(e) => Err(failed("make a VLAN of", &uplink.name)(e)),
        }
    }

    /// Has the link tell its network of its addresses when it comes up.
    pub(in super::super) async fn announce(&self, link: &Link) -> Result<(), NetworkError> {
        let mut settings = InetDevConf::default();
        settings.arp_notify = 1;
        let inet = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(settings)]);
        let message = LinkUnspec::new_with_index(link.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![inet]));
        let request = self.handle.link().change(message.build());
        request.execute().await.map_err(failed("configure", &link.name))
    }

    /// Moves the link into the namespace of a descriptor, where it is down.
    pub(in super::super) async fn move_to(&self, link: &Link, netns: RawFd) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index).setns_by_fd(netns).build();
        let request = self.handle.link().change(message);
        request.execute().await.map_err(failed("move", &link.name))
    }

    /// Moves the link into the namespace of a descriptor, where it is down and has that name.
    pub(in super::super) async fn move_as(
        &self,
        link: &Link,
        name: &str,
        netns: RawFd,
    ) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index)
            .name(name)
            .setns_by_fd(netns);
        let request = self.handle.link().change(message.build());
        request.execute().await.map_err(failed("move", &link.name))
    }

    /// Only of a link that is down.
    pub(in super::super) async fn rename(&self, link: &Link, name: &str) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index).name(name).build();
        let request = self.handle.link().change(message);
        request.execute().await.map_err(failed("rename", &link.name))
    }

    pub(in super::super) async fn set_mac(&self, link: &Link, mac: &[u8]) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index)
            .address(mac.to_vec())
            .build();
        let request = self.handle.link().change(message);
        let failed = failed("set the hardware address of", &link.name);
        request.execute().await.map_err(failed)
    }

    pub(in super::super) async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
        let request = self.handle.link().change(message);
        request
            .execute()
            .await
            .map_err(failed("set the MTU of", &link.name))
    }

    /// What an operator, or DHCP, gave the link: without what the kernel gives it by itself.
    pub(in super::super) async fn addresses_of(&self, link: &Link) -> Result<Vec<LinkAddress>, NetworkError> {
        let request = self.handle.address().get().set_link_index_filter(link.index);
        let mut stream = request.execute();
        let mut addresses = Vec::new();
        while let Some(message) = stream
            .try_next()
            .await
            .map_err(failed("list addresses of", &link.name))?
        {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let own = local.or(address);
            let link_local = matches!(own, Some(IpAddr::V6(v6)) if v6.is_unicast_link_local());
            let broadcast = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Broadcast(address) => Some(*address),
                _ => None,
            });
            let net = own.and_then(|own| IpNet::new(own, message.header.prefix_len).ok());
            if message.header.index == link.index && !link_local {
                addresses.extend(net.map(|net| LinkAddress {
                    net,
                    broadcast,
                    scope: message.header.scope.into(),
                }));
            }
        }
        Ok(addresses)
    }

    pub(in super::super) async fn add_any_address(
        &self,
        link: &Link,
        address: &LinkAddress,
    ) -> Result<(), NetworkError> {
        let (own, prefix_len) = (address.net.addr(), address.net.prefix_len());
        let mut request = self.handle.address().add(link.index, own, prefix_len);
        let message = request.message_mut();
        message.header.scope = address.scope.into();
        let is_broadcast = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Broadcast(_));
        message.attributes.retain(|attribute| !is_broadcast(attribute));
        let broadcast = address.broadcast.map(AddressAttribute::Broadcast);
        message.attributes.extend(broadcast);
        let result = request.replace().execute().await;
        result.map_err(failed("give an address to", &link.name))
    }

    pub(in super::super) async fn down(&self, link: &Link) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index).down().build();
        let request = self.handle.link().change(message);
        request.execute().await.map_err(failed("set down", &link.name))
    }

    /// Has the kernel ask who has an address, as if there were something to send there.
    pub(in super::super) async fn ask_for(&self, link: &Link, address: Ipv4Addr) -> Result<(), NetworkError> {
        let request = self.handle.neighbours().add(link.index, IpAddr::V4(address));
        let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use);
        let result = request.replace().execute().await;
        result.map_err(failed("ask for an address on", &link.name))
    }

    /// Who answered. The kernel may call an answer stale at once.
    pub(in super::super) async fn answer_for(
        &self,
        link: &Link,
        address: Ipv4Addr,
    ) -> Result<Option<Mac>, NetworkError> {
        let request = self.handle.neighbours().get();
        let mut stream = request.set_address_family(AddressFamily::Inet).execute();
        let wanted = NeighbourAttribute::Destination(NeighbourAddress::Inet(address));
        let mut found = None;
        while let Some(message) = stream
            .try_next()
            .await
            .map_err(failed("list neighbours on", &link.name))?
        {
            let asked = message.header.ifindex == link.index && message.attributes.contains(&wanted);
            let holder = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
                _ => None,
            });
            if asked {
                found = holder;
            }
        }
        Ok(found)
    }

    /// Makes the link a host of a network.
    pub(in super::super) async fn add_lan_address(
        &self,
        link: &Link,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetworkError> {
        let request = self
            .handle
            .address()
            .add(link.index, IpAddr::V4(address), prefix_len);
        let result = request.replace().execute().await;
        result.map_err(failed("give an address to", &link.name))
    }

    /// Routes all else through a gateway that is a host of the link's network.
    pub(in super::super) async fn add_lan_default_route(
        &self,
        link: &Link,
        gateway: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let default = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(link.index)
            .build();
        let result = self.handle.route().add(default).replace().execute().await;
        result.map_err(failed("add the default route through", &link.name))
    }

    /// Routes one address through `gateway`, itself reached directly through the link, as packets from `source`.
    pub(in super::super) async fn add_route_from(
        &self,
        link: &Link,
        address: Ipv4Addr,
        gateway: Ipv4Addr,
        source: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let direct = direct_route(link, gateway.into());
        let result = self.handle.route().add(direct).replace().execute().await;
        result.map_err(failed("route the gateway through", &link.name))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .gateway(gateway)
            .output_interface(link.index)
            .pref_source(source)
            .build();
        let result = self.handle.route().add(route).replace().execute().await;
        result.map_err(failed("add the route to the endpoints through", &link.name))
    }

    /// Nothing leads to an address.
    pub(in super::super) async fn add_unreachable(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .kind(RouteType::Unreachable)
            .build();
        let result = self.handle.route().add(route).replace().execute().await;
        result.map_err(failed("make unreachable", &address.to_string()))
    }
}
