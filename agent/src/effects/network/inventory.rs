//! Owns the listing of what this instance has on the host, for the audit, and the removal of what nobody owns. Lists
//! the host, never a memory of what was made.

use std::{collections::BTreeSet, fs, path::PathBuf};

use berth_agent_core::ids::TaskId;

use super::{
    Names, Network,
    error::NetworkError,
    has,
    names::Owner,
    netlink::{HostRoute, Link, Netlink, Socket},
    netns,
    routes::{RangeRoute, Route},
    threads::block_on,
    vlan,
};

/// Something that this instance made on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostObject {
    /// A namespace file; `mounted`: with a namespace on it.
    Netns {
        path: PathBuf,
        /// None: the file's name says nobody.
        owner: Option<Owner>,
        mounted: bool,
    },
    /// One VLAN of a link, which no task is on.
    Vlan { name: String },
    /// The host's end of a veth pair, also of one that an earlier run of the agent kept ready; a link that was moved to its owner.
    Link {
        name: String,
        /// None: its alias names nobody of this instance.
        owner: Option<Owner>,
    },
    /// A host route to an address of the task range.
    Route {
        address: std::net::IpAddr,
        link_index: u32,
        /// None: it leads to a link that is nobody's.
        owner: Option<Owner>,
    },
    /// A route of ours to a whole range that is not wanted any more.
    RangeRoute {
        /// For people.
        route: String,
        /// As it is deleted.
        removal: RouteRemoval,
    },
}

/// One of our routes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteRemoval(RangeRoute);

impl HostObject {
    /// Whom it was made for, as far as the object itself tells.
    pub fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Netns { owner, .. } | Self::Link { owner, .. } | Self::Route { owner, .. } => {
                owner.as_ref()
            }
            Self::Vlan { .. } | Self::RangeRoute { .. } => None,
        }
    }

    /// The task it was made for.
    pub fn task(&self) -> Option<&TaskId> {
        self.owner().map(|owner| &owner.task)
    }
}

impl Network {
    /// Everything of this instance on the host: namespace files and mounts, links, routes. Ordered.
    ///
    /// # Errors
    /// When the host cannot be read; never a partial list.
    pub async fn list(&self) -> Result<Vec<HostObject>, NetworkError> {
        let (dir, names) = (self.netns_dir.clone(), self.names.clone());
        let look = move || {
            let objects = list_namespaces(&dir)?;
            let netlink = async |host: &Netlink| {
                let all = host.links().await?;
                let prefixes = [names.prefix(), &names.vlan_prefix(), &names.ready_prefix()];
                let ours = |link: &Link| prefixes.iter().any(|prefix| link.name.starts_with(prefix));
                let (links, _): (Vec<_>, Vec<_>) = all.into_iter().partition(ours);
                Ok((links, host.host_routes().await?, host.routes().await?))
            };
            let listed = block_on(async { Socket::open()?.with("list", "links", netlink).await });
            listed.map(|(links, routes, all)| (objects, links, routes, all))
        };
        let ((mut objects, links, routes, all), ()) = self.threads.run("list", "the host", (), look).await?;
        let (links, others): (Vec<_>, Vec<_>) = links
            .into_iter()
            .partition(|link| link.name.starts_with(self.names.prefix()));
        let ready = self.names.ready_prefix();
        let (ready, vlans): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|link| link.name.starts_with(&ready));
        let kept = self.pool.links();
        let nobodys = ready.into_iter().filter(|link| !kept.contains(&link.name));
        objects.extend(nobodys.map(|link| HostObject::Link {
            name: link.name,
            owner: None,
        }));
        let namespaces: Vec<Owner> = objects.iter().filter_map(HostObject::owner).cloned().collect();
        let namespaces = if self.left_behind {
            &[]
        } else {
            namespaces.as_slice()
        };
        let unused = vlan::unused(&self.names, &self.attachments, namespaces, &vlans);
        objects.extend(unused.into_iter().map(|link| HostObject::Vlan {
            name: link.name.clone(),
        }));
        for (owner, lent) in self.interfaces.lent()? {
            objects.push(HostObject::Link {
                name: lent.name,
                owner: Some(owner),
            });
        }
        let known = self.known().clone();
        let ours = all.iter().filter(|route| route.is_ours(self.names.group()));
        for route in ours
            .filter_map(Route::of_range)
            .filter(|route| !known.routes.contains(route))
        {
            objects.push(HostObject::RangeRoute {
                route: route.describe(),
                removal: RouteRemoval(route),
            });
        }
        let owner = |link: &Link| self.names.owner_of_alias(&link.alias);
        for route in routes {
            let link = links.iter().find(|link| link.index == route.link_index);
            if link.is_some() || has(&self.range, route.address) || known.has(route.address) {
                objects.push(HostObject::Route {
                    address: route.address,
                    link_index: route.link_index,
                    owner: link.and_then(owner),
                });
            }
        }
        objects.extend(links.iter().map(|link| HostObject::Link {
            name: link.name.clone(),
            owner: owner(link),
        }));
        objects.sort();
        Ok(objects)
    }

    /// Removes a route to a whole range that is not wanted, by its description. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_route(&self, described: &str) -> Result<(), NetworkError> {
        let mut strays = self.list().await?;
        let is_it = |object: &HostObject| matches!(object, HostObject::RangeRoute { route, .. } if route == described);
        strays.retain(is_it);
        self.remove_strays(&strays).await
    }

    /// Removes the link for one VLAN, by its name, unless a task is on it. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_vlan(&self, name: &str) -> Result<(), NetworkError> {
        let name = name.to_owned();
        self.remove_strays(&[HostObject::Vlan { name }]).await
    }

    /// Removes one object that has no owner. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_stray(&self, stray: &HostObject) -> Result<(), NetworkError> {
        self.remove_strays(std::slice::from_ref(stray)).await
    }

    /// Removes objects that have no owner: all links in one operation, because one by one is slow. Idempotent.
    ///
    /// # Errors
    /// The first refusal of the kernel; the rest is still removed.
    pub async fn remove_strays(&self, strays: &[HostObject]) -> Result<(), NetworkError> {
        let (strays, names, dir) = (strays.to_vec(), self.names.clone(), self.netns_dir.clone());
        let interfaces = self.interfaces.clone();
        let (attachments, turn) = (self.attachments.clone(), self.vlans.clone());
        let remove = move || {
            let mut result = Ok(());
            let mut keep = BTreeSet::new();
            for owner in strays.iter().filter_map(HostObject::owner) {
                let given = interfaces.give_back(owner, &dir.join(owner.file_name()));
                if given.is_err() {
                    keep.insert(owner);
                }
                result = result.and(given);
            }
            for stray in &strays {
                match stray {
                    // With it a link would go that is in there still.
                    HostObject::Netns {
                        owner: Some(owner), ..
                    } if keep.contains(owner) => {}
                    HostObject::Netns { path, .. } if path.starts_with(&dir) => {
                        result = result.and(netns::remove(path).map(|_| ()));
                    }
                    HostObject::Vlan { name } if name.starts_with(&names.vlan_prefix()) => {
                        result = result.and(vlan::remove_unused(&names, &attachments, &turn, name));
                    }
                    _ => {}
                }
            }
            let netlink = async |host: &Netlink| remove_links_and_routes(host, &names, &strays).await;
            result.and(block_on(async {
                Socket::open()?.with("remove", "strays", netlink).await
            }))
        };
        self.threads.run("remove", "strays", (), remove).await.map(|_| ())
    }
}

async fn remove_links_and_routes(
    host: &Netlink,
    names: &Names,
    strays: &[HostObject],
) -> Result<(), NetworkError> {
    let mut result = Ok(());
    let mut links = false;
    for stray in strays {
        let done = match stray {
            HostObject::Link { name, .. }
                if name.starts_with(names.prefix()) || name.starts_with(&names.ready_prefix()) =>
            {
                links = true;
                host.set_group(name, names.stray_group()).await
            }
            HostObject::Route {
                address, link_index, ..
            } => {
                host.delete_host_route(&HostRoute {
                    address: *address,
                    link_index: *link_index,
                })
                .await
            }
            HostObject::RangeRoute { removal, .. } => {
                host.delete_range_route(&removal.0, names.group()).await
            }
            HostObject::Netns { .. } | HostObject::Vlan { .. } | HostObject::Link { .. } => Ok(()),
        };
        result = result.and(done);
    }
    if links {
        result = result.and(host.delete_group(names.stray_group()).await);
    }
    result
}

/// Namespace files, and mounts whose file is gone.
fn list_namespaces(dir: &std::path::Path) -> Result<Vec<HostObject>, NetworkError> {
    let mut mounts = netns::mounts_under(dir)?;
    mounts.retain(|mount| mount != dir);
    let mut objects = Vec::new();
    let mut add = |path: PathBuf, mounted: bool| {
        let name = path.file_name().and_then(|name| name.to_str());
        let owner = name.and_then(Owner::of_file);
        objects.push(HostObject::Netns { path, owner, mounted });
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        listed => Some(listed.map_err(NetworkError::directory("list", dir))?),
    };
    for entry in entries.into_iter().flatten() {
        let path = entry.map_err(NetworkError::directory("list", dir))?.path();
        let mounted = mounts.contains(&path);
        mounts.retain(|mount| *mount != path);
        add(path, mounted);
    }
    mounts.dedup();
    for path in mounts {
        add(path, true);
    }
    Ok(objects)
}
