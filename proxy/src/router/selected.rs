//! A route selected for one request, with the cluster drawn for it.

use std::sync::Arc;

use crate::http::filter::RouteConfig;
use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::stats::Scope;
use crate::stream_info::StreamInfo;

use super::mirror::MirrorPolicy;
use super::route_action::{ClusterChoice, WeightedCluster};
use super::{
    CountedIn, ForwardAction, Mutations, RetryPolicy, Route, RouteKind, RouteMatch, RouteTable,
    VirtualHost, WorkerTable,
};

/// A selected route; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SelectedRoute {
    table: WorkerTable,
    virtual_host: usize,
    route: usize,
    weighted: Option<usize>,
    cluster: Option<Arc<str>>,
}

impl SelectedRoute {
    pub(super) fn new(
        table: WorkerTable,
        virtual_host: usize,
        route: usize,
        headers: &RequestHeaders,
    ) -> Self {
        let mut selected = SelectedRoute {
            table,
            virtual_host,
            route,
            weighted: None,
            cluster: None,
        };
        let choice = match &selected.route().kind {
            RouteKind::Forward(action) => action.choose_cluster(headers),
            RouteKind::Redirect(_) | RouteKind::Direct(_) => ClusterChoice::default(),
        };
        selected.weighted = choice.weighted;
        selected.cluster = choice.cluster;
        selected
    }

    /// The route table.
    pub(crate) fn table(&self) -> &RouteTable {
        &self.table
    }

    /// The virtual host.
    pub(crate) fn virtual_host(&self) -> &VirtualHost {
        &self.table.virtual_hosts[self.virtual_host]
    }

    /// The route.
    pub(crate) fn route(&self) -> &Route {
        &self.virtual_host().routes[self.route]
    }

    /// What the route matched by.
    pub(crate) fn route_match(&self) -> &RouteMatch {
        &self.route().route_match
    }

    /// The cluster's name; none when the route does not forward, or its cluster header is missing.
    pub(crate) fn cluster(&self) -> Option<&Arc<str>> {
        self.cluster.as_ref()
    }

    /// The drawn weighted cluster.
    pub(super) fn weighted(&self) -> Option<&WeightedCluster> {
        match &self.route().kind {
            RouteKind::Forward(action) => action.weighted(self.weighted?),
            RouteKind::Redirect(_) | RouteKind::Direct(_) => None,
        }
    }

    /// The retry policy: the route's, else the virtual host's.
    pub(crate) fn retry_policy(&self) -> Option<&Arc<RetryPolicy>> {
        match &self.route().kind {
            RouteKind::Forward(action) => {
                action.retry.as_ref().or(self.virtual_host().retry.as_ref())
            }
            RouteKind::Redirect(_) | RouteKind::Direct(_) => None,
        }
    }

    /// Whether attempts that are out of their time go on beside the next: the route's word, else the virtual host's.
    pub(crate) fn hedges(&self) -> bool {
        match &self.route().kind {
            RouteKind::Forward(action) => action.hedges.unwrap_or(self.virtual_host().hedges),
            RouteKind::Redirect(_) | RouteKind::Direct(_) => false,
        }
    }

    /// The mirror policies of the most specific level that has any.
    pub(crate) fn mirrors(&self) -> &[MirrorPolicy] {
        let of_route = match &self.route().kind {
            RouteKind::Forward(action) => action.mirrors.as_slice(),
            RouteKind::Redirect(_) | RouteKind::Direct(_) => &[],
        };
        [of_route, &self.virtual_host().mirrors, &self.table.mirrors]
            .into_iter()
            .find(|policies| !policies.is_empty())
            .unwrap_or_default()
    }

    /// How much of the request's body is kept for a retry; `None` when no level says.
    pub(crate) fn buffer_limit(&self) -> Option<usize> {
        self.route()
            .buffer_limit
            .or(self.virtual_host().buffer_limit)
    }

    /// What a request counts in besides its cluster, and the name of its virtual cluster.
    pub(crate) fn counted_in(
        &self,
        root: &Scope,
        headers: &RequestHeaders,
    ) -> (CountedIn, Option<Arc<str>>) {
        let host = self.virtual_host();
        let virtual_cluster = host.clusters.find(headers);
        let slots = [self.route().stats.as_deref(), virtual_cluster];
        let counted = CountedIn::new(root, &host.name, slots);
        // What fits no virtual cluster is counted, but has no name.
        let named = virtual_cluster.filter(|slot| !host.clusters.is_rest(slot));
        (counted, named.map(|slot| slot.name.clone()))
    }

    /// The most specific configuration of a filter: weighted cluster, route, virtual host, table.
    pub(crate) fn filter_config(&self, filter: &str) -> Option<&RouteConfig> {
        self.weighted()
            .and_then(|weighted| weighted.filters.get(filter))
            .or_else(|| self.route().filters.get(filter))
            .or_else(|| self.virtual_host().filters.get(filter))
            .or_else(|| self.table.filters.get(filter))
    }

    /// The configurations of a filter at all levels, the most specific first.
    pub(crate) fn filter_configs<'a>(
        &'a self,
        filter: &'a str,
    ) -> impl Iterator<Item = &'a RouteConfig> {
        [
            self.weighted().map(|weighted| &weighted.filters),
            Some(&self.route().filters),
            Some(&self.virtual_host().filters),
            Some(&self.table.filters),
        ]
        .into_iter()
        .flatten()
        .filter_map(move |configs| configs.get(filter))
    }

    /// The header changes of all levels, in the order in which they apply.
    fn mutations(&self) -> impl Iterator<Item = &Mutations> {
        let levels = [
            self.weighted().map(|weighted| &weighted.mutations),
            Some(&self.route().mutations),
            Some(&self.virtual_host().mutations),
            Some(&self.table.mutations),
        ];
        let is_reversed = self.table.most_specific_wins;
        (0..levels.len()).filter_map(move |index| {
            levels[if is_reversed {
                levels.len() - 1 - index
            } else {
                index
            }]
        })
    }

    /// Changes the request as its route says: headers, then host, then path.
    pub(crate) fn finalize_request(
        &self,
        action: &ForwardAction,
        headers: &mut RequestHeaders,
        info: &StreamInfo,
        keep_original_path: bool,
    ) {
        for mutations in self.mutations() {
            mutations.request.apply_to_request(headers, info);
        }
        let host = self
            .weighted()
            .and_then(|weighted| weighted.host_rewrite.as_ref());
        action.rewrite_host(headers, host);
        action.rewrite_path(&self.route().route_match, headers, info, keep_original_path);
    }

    /// Changes the response as its route says.
    pub(crate) fn finalize_response(
        &self,
        response: &mut ResponseHeaders,
        request: Option<&RequestHeaders>,
        info: &StreamInfo,
    ) {
        for mutations in self.mutations() {
            mutations
                .response
                .apply_to_response(response, request, info);
        }
    }
}
