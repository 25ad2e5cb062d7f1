"""Certificates for networks with batch norm: what is paid, what is kept apart, what is known."""

from bnkit.certify.keys import example_keys as example_keys
from bnkit.certify.keys import refuse_overlap as refuse_overlap
from bnkit.certify.ledger import Entry as Entry
from bnkit.certify.ledger import Ledger as Ledger
from bnkit.certify.split import BoundSet as BoundSet
from bnkit.certify.split import Split as Split
from bnkit.certify.split import split as split
from bnkit.certify.statistics import ChannelMoments as ChannelMoments
from bnkit.certify.statistics import StatisticsSets as StatisticsSets
